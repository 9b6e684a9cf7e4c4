"""How talking to a server may fail.

The tree::

    TricastError
    ├── ClientError         asking again would give the same answer: the caller has to change something
    └── ConnectionLost
        └── Lost            it may work the next time, perhaps not before some delay
"""

from tricast.errors import ConnectionLost, TricastError


class ClientError(TricastError):
    """The server will not do what was asked, however often it is asked.

    Attributes:
        status: the HTTP status that said so, or None.
        code: what a Tricast server calls the mistake, such as ``topic-not-allowed``; empty where none said so.
        is_transport_fault: whether another transport may get through where this one did not.
    """

    def __init__(
        self, detail: str, *, status: int | None = None, code: str = "", is_transport_fault: bool = False
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.is_transport_fault = is_transport_fault


class Lost(ConnectionLost):
    """The connection could not be made, broke, or was ended by the server for a while.

    Attributes:
        retry_after: seconds that the server asked to wait, or None.
        is_transport_fault: whether another transport may get through where this one did not.
    """

    def __init__(self, detail: str, *, retry_after: float | None = None, is_transport_fault: bool = False) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self.is_transport_fault = is_transport_fault
