"""What became of bytes that were to be sent at once: the word that sockets and the hub share."""

from enum import Enum, auto


class Sent(Enum):
    """How much of it the kernel took."""

    ALL = auto()  # and there is room for more
    PART = auto()  # the rest is kept, and waits for room
    NOTHING = auto()  # something else waits for room already, so this was not taken at all
