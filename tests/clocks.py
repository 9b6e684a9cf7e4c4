"""A clock for what is told the time, and how long real time may be waited for."""

#: After so long what a test waits for is taken never to come. No machine is that slow: only a test that fails waits so.
HANG_SECONDS = 300.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
