"""How long to wait before the next attempt. Pure: no clock of its own."""

import random

from tricast.client.settings import ClientSettings


class Backoff:
    """Exponential backoff with full jitter.

    Each wait is drawn from zero to a ceiling that doubles with every failure. Drawing from the whole of it
    spreads the clients of a restarted server, where a fixed wait would bring all back in the same moment.

    Args:
        settings: the first and the longest ceiling.
        chance: the source of randomness.
    """

    def __init__(self, settings: ClientSettings, chance: random.Random) -> None:
        self._settings = settings
        self._chance = chance
        self._ceiling = settings.backoff_first

    def reset(self) -> None:
        """Forgets past failures."""
        self._ceiling = self._settings.backoff_first

    def next_delay(self, at_least: float | None = None) -> float:
        """The seconds to wait after one more failure.

        Args:
            at_least: what the server asked for, or None; the jitter comes on top.
        """
        ceiling = min(self._ceiling, self._settings.backoff_longest)
        self._ceiling = ceiling * 2
        return min(at_least or 0.0, self._settings.retry_longest) + self._chance.uniform(0, ceiling)
