"""How much each of many has of something: how many at a time, and how many a second. Pure bookkeeping, without I/O.

Neither grows with who was there once: what has nothing any more is forgotten.
"""

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Holder = TypeVar("Holder", bound=Hashable)

#: Buckets that are full again are forgotten whenever there are twice as many as after the last time.
_FIRST_CLEANING = 1024


class Tally(Generic[Key]):
    """How many of something each key has now.

    Args:
        allowed: how many it may have; 0 for any number.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self._counts: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, key: Key) -> int:
        """How many the key has."""
        return self._counts.get(key, 0)

    def take(self, key: Key) -> bool:
        """Counts one more, to be given back; returns False, and counts nothing, where the key has all it may have."""
        count = self._counts.get(key, 0)
        if self.allowed and count >= self.allowed:
            return False
        self._counts[key] = count + 1
        return True

    def give_back(self, key: Key) -> None:
        """Counts one less."""
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]


class Lapsing(Generic[Key]):
    """A tally of what each key was given, which is given back by itself after a time.

    Args:
        allowed: how many it may have; 0 for any number, and then nothing is kept.
        seconds: how long it has each of them.
        clock: seconds that only ever grow.
    """

    def __init__(self, allowed: int, seconds: float, *, clock: Callable[[], float]) -> None:
        self._tally: Tally[Key] = Tally(allowed)
        self._seconds = seconds
        self._clock = clock
        self._ends: deque[tuple[float, Key]] = deque()

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def allowed(self) -> int:
        """How many each key may have; 0 for any number."""
        return self._tally.allowed

    def take(self, key: Key) -> bool:
        """Counts one more; returns False, and counts nothing, where the key has all it may have."""
        if not self.allowed:
            return True
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            self._tally.give_back(self._ends.popleft()[1])
        is_allowed = self._tally.take(key)
        if is_allowed:
            self._ends.append((now + self._seconds, key))
        return is_allowed


class Seats(Generic[Holder, Key]):
    """A tally by who holds what it counts, so that giving back needs no memory of what was taken.

    Args:
        allowed: how many places each key has; 0 for any number, and then nothing is kept.
    """

    def __init__(self, allowed: int) -> None:
        self._tally: Tally[Key] = Tally(allowed)
        self._held: dict[Holder, Collection[Key]] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def allowed(self) -> int:
        """How many places each key has; 0 for any number."""
        return self._tally.allowed

    def count(self, key: Key) -> int:
        """How many places of the key are taken."""
        return self._tally.count(key)

    def hold(self, holder: Holder, keys: Collection[Key]) -> Key | None:
        """Gives the holder one place of each of these keys, and takes back those it has of others.

        Args:
            holder: who.
            keys: no one twice; kept as they are, so that many holders can share one object.

        Returns:
            None; or, having changed nothing, a key all of whose places are taken.
        """
        if not self.allowed:
            return None
        held = self._held.get(holder, ())
        taken: list[Key] = []
        for key in keys:
            if key not in held:
                if not self._tally.take(key):
                    self._give_back(taken)
                    return key
                taken.append(key)
        self._give_back(key for key in held if key not in keys)
        self._held[holder] = keys
        return None

    def let_go(self, holder: Holder) -> None:
        """Takes back all that the holder has, if it has any."""
        if self._held:
            self._give_back(self._held.pop(holder, ()))

    def _give_back(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._tally.give_back(key)


class Buckets(Generic[Key]):
    """A token bucket for each key: so many a second, and so many at once after a pause.

    Args:
        rate: how many a second; 0 for any number.
        burst: how many at once.
        clock: seconds that only ever grow.
    """

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float]) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._full_at: dict[Key, float] = {}  # all that is known of a bucket: when it will be full again
        self._clean_at = _FIRST_CLEANING

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: Key, count: int = 1) -> float:
        """Takes that many; returns 0, or, having taken none, the seconds until there are as many.

        More at once than the bucket holds are let through when it is full, and have to be waited for by who comes next.
        """
        if not self.rate:
            return 0.0
        now = self._clock()
        full_at = max(self._full_at.get(key, now), now)
        wait = full_at - now - (self.burst - min(count, self.burst)) / self.rate
        if wait > 1e-9:
            return wait
        self._full_at[key] = full_at + count / self.rate
        if len(self._full_at) > self._clean_at:
            self._clean(now)
        return 0.0

    def wait(self, key: Key) -> float:
        """The seconds until one may be taken; 0 when it may be now."""
        return 0.0 if not self.rate else max(self.full_in(key) - (self.burst - 1) / self.rate, 0.0)

    def left(self, key: Key) -> int:
        """How many may be taken now."""
        missing = max(self._full_at.get(key, 0.0) - self._clock(), 0.0) * self.rate
        return max(0, int(self.burst - missing + 1e-9))

    def full_in(self, key: Key) -> float:
        """The seconds until the bucket is full again."""
        return max(self._full_at.get(key, 0.0) - self._clock(), 0.0)

    def forget(self, key: Key) -> None:
        """Forgets a key that does not come back."""
        self._full_at.pop(key, None)

    def _clean(self, now: float) -> None:
        self._full_at = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        self._clean_at = max(2 * len(self._full_at), _FIRST_CLEANING)
