"""What became of bytes that were to be sent at once: the word that sockets and the hub share."""

from enum import Enum, auto
from typing import Final


class Sent(Enum):
    """How much of it the kernel took."""

    ALL = auto()  # and there is room for more
    PART = auto()  # the rest is kept, and waits for room
    NOTHING = auto()  # something else waits for room already, so this was not taken at all


#: The same by themselves, for what is done for each delivery: finding one in its class takes 60 ns each time (Python
#: 3.11), and three of them were half of what a delivery cost beside the system call.
ALL: Final = Sent.ALL
PART: Final = Sent.PART
NOTHING: Final = Sent.NOTHING
