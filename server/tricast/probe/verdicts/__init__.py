"""From what was measured to what it means: a function for each check. Does no I/O.

Each is given what was measured through whatever is in the way, and what was measured at the server itself where that
could be done: a fault that the server has as well is not held against the way.
"""


def size(count: int) -> str:
    """So many bytes, in words."""
    return f"{count:,} bytes"
