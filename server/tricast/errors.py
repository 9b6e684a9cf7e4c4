"""Every error that Tricast raises on purpose.

The tree::

    TricastError
    ├── ConfigError              the configuration is wrong: all problems, each with file and key
    ├── WorkerFailed             a worker process could not begin; says why, in lines for whoever started the program
    ├── RemoteProtocolError      the client's mistake: carries the HTTP status and the close code to answer with
    │   ├── LimitExceeded        … it asked for more than a configured limit allows
    │   │   └── TooFast          … or for it sooner than that
    │   ├── TooSlow              … it did not send in time what it had begun
    │   ├── Unauthorized         … it did not show who it is, or not believably
    │   └── Forbidden            … who it is may not do that
    ├── Unavailable              not now, for a reason that is not the client's; says when to come back
    │   └── LogUnavailable       … the log cannot take or give events; nothing acknowledged is lost
    └── ConnectionLost           the peer is gone, or made no progress in time: nobody is left to be told

This module knows nothing of sockets, HTTP parsing or Trio. Errors of libraries are mapped to these once, where they
enter: ``connection.py`` for OSError, ``wire/heads.py`` for h11, ``transports/websocket.py`` for wsproto.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

Error = TypeVar("Error", bound=Exception)

_ADDRESS = r"[^\s,;'\"()]+:[0-9]{1,5}(?![0-9])(?:/[^\s,:;'\"()]+)?"
#: Hosts with their ports, as this program, Redis and librdkafka write them, and the colon where they begin a reason.
_ADDRESSES = re.compile(rf"{_ADDRESS}(?:, {_ADDRESS})*(?P<begins>:\s+)?")


class TricastError(Exception):
    """Whatever Tricast itself raises."""


class ConfigProblem(NamedTuple):
    """One thing that is wrong with a configuration.

    Attributes:
        source: the file's name, or ``environment``.
        key: the dotted key (``server.port``), or the variable's name; empty for the file as a whole.
        message: what was expected and what was found.
    """

    source: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


class ConfigError(TricastError):
    """The configuration cannot be used.

    Attributes:
        problems: everything that is wrong with it, in file order.
    """

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class WorkerFailed(TricastError):
    """A worker process ended before it was ready.

    Attributes:
        lines: why, each for itself.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


class RemoteProtocolError(TricastError):
    """The client sent something that cannot be accepted.

    Attributes:
        detail: what is wrong, in words for the person at the other end; names no secrets.
        code: a short machine-readable name, such as ``bad-topic``.
        status: the HTTP status to answer with.
        close_code: the WebSocket close code (RFC 6455 7.4.1), where the connection has to end for it.
        headers: (name, value) byte pairs that the HTTP answer needs (``Allow``, ``Retry-After``…).
        closes: whether the HTTP connection cannot be used after the answer.
        reason: what to count it by: the code, or the key of the limit.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str = "bad-request",
        status: int = 400,
        close_code: int = 1008,
        headers: Sequence[tuple[bytes, bytes]] = (),
        closes: bool = False,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.close_code = close_code
        self.headers = tuple(headers)
        self.closes = closes
        self.reason = code


class LimitExceeded(RemoteProtocolError):
    """The client asked for more than a limit allows.

    Attributes:
        limit: the configuration key of the limit, such as ``publish.max_event``.
        actual: what was asked for, or None where it was not counted to the end.
        detail: in words, where it is not that so many are allowed and more were found.
    """

    def __init__(
        self,
        limit: str,
        allowed: float,
        actual: int | None = None,
        *,
        detail: str = "",
        status: int = 413,
        close_code: int = 1009,
        headers: Sequence[tuple[bytes, bytes]] = (),
        closes: bool = False,
    ) -> None:
        found = "more" if actual is None else str(actual)
        super().__init__(
            detail or f"{limit} allows {allowed}, found {found}",
            code="limit-exceeded",
            status=status,
            close_code=close_code,
            headers=headers,
            closes=closes,
        )
        self.limit = self.reason = limit
        self.allowed = allowed
        self.actual = actual


class TooFast(LimitExceeded):
    """The client asked for something more often than a rate allows.

    Attributes:
        wait: seconds after which there is as much again as it asked for.
    """

    def __init__(self, limit: str, allowed: float, wait: float, *, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        detail = f"{limit} allows {allowed:g} a second; come back in {wait:.1f} s"
        super().__init__(limit, allowed, detail=detail, status=429, close_code=1008, headers=headers)
        self.wait = wait


class TooSlow(RemoteProtocolError):
    """The client did not send in time what it had begun (RFC 9110 15.5.9).

    Args:
        limit: the configuration key of the time, such as ``limits.head_timeout``.
        what: did not come, in words.
        seconds: how long it may take,
        rate: and a second more for every so many bytes that came.
    """

    def __init__(self, limit: str, what: str, seconds: float, rate: int) -> None:
        allowed = f"{limit} allows {seconds:g} s, and a second more for every {rate} bytes"
        super().__init__(f"{what} did not come in time: {allowed}", code="too-slow", status=408, closes=True)
        self.reason = limit


class Unauthorized(RemoteProtocolError):
    """Who is asking did not say who it is, or could not be believed (RFC 9110 15.5.2).

    Args:
        detail: which check failed, and why where that can be told safely; never a secret, nor a part of one.
        code: which check it was, such as ``token-expired``; ``token-missing`` where nothing was shown.
    """

    def __init__(self, detail: str, *, code: str) -> None:
        # RFC 6750 3.1: who has shown nothing is told of no error.
        error = b"" if code == "token-missing" else b', error="invalid_token"'
        headers = ((b"www-authenticate", b'Bearer realm="tricast"' + error),)
        super().__init__(detail, code=code, status=401, close_code=4401, headers=headers)


class Forbidden(RemoteProtocolError):
    """Who is asking is known, or need not be, and may not do this (RFC 9110 15.5.4).

    Args:
        detail: what was asked for, and what it is that does not allow it.
        code: which check it was, such as ``topic-not-allowed``.
    """

    def __init__(self, detail: str, *, code: str) -> None:
        super().__init__(detail, code=code, status=403, close_code=4403)


class Unavailable(TricastError):
    """The server cannot do this now, and that is not the client's fault.

    Attributes:
        detail: why, in words for the person at the other end.
        code: a short machine-readable name, such as ``draining``.
        retry_after: seconds after which the client may try again.
        reason: what to count it by.
    """

    def __init__(self, detail: str, *, code: str, retry_after: float = 5.0, reason: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.reason = reason or code
        self.retry_after = retry_after


class LogUnavailable(Unavailable):
    """The log cannot be written or read at the moment. What it acknowledged before stays acknowledged.

    As text, it is for those who run the server. Where the log's servers are is none of a client's business.

    Attributes:
        detail: without addresses.
        why: the whole reason, without the beginning that all of these have.
    """

    def __init__(self, why: str) -> None:
        super().__init__(_not_available(_without_addresses(why)), code="log-unavailable")
        self.why = why

    def __str__(self) -> str:
        return _not_available(self.why)


class ConnectionLost(TricastError):
    """The peer closed or reset the connection, or did not move in time: nobody is left to be told.

    Attributes:
        reason: one of a few words, to count by: ``reset``, ``left``, ``closed``, ``write-timeout``, ``write-rate``,
            ``unsent``, ``ping-timeout``, ``tls``, ``tls-timeout`` for a handshake that took too long,
            ``client-certificate`` for a bad one in it.
    """

    def __init__(self, detail: str, *, reason: str = "reset") -> None:
        super().__init__(detail)
        self.reason = reason


def _not_available(why: str) -> str:
    return f"the log is not available: {why}"


def _without_addresses(text: str) -> str:
    return _ADDRESSES.sub(lambda found: "" if found["begins"] else "a server", text)


def leaf(group: ExceptionGroup[Error]) -> Error:
    """One of the errors in a group, however deep, for where one stands for all."""
    return next(leaves(group))


def leaves(group: BaseExceptionGroup[Error]) -> Iterator[Error]:
    """All errors in a group, however deep."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
