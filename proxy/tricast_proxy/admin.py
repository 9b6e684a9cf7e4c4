"""The admin listener: plain HTTP/1.1 for whoever runs the proxy. What it answers is in ``admin_routes.py``."""

import ipaddress
from functools import partial

import h11
import trio

from tricast.config import AdminSection
from tricast.errors import RemoteProtocolError
from tricast.listeners import url_of
from tricast.logs import Logger
from tricast.wire.http1 import (
    CONTINUE,
    Request,
    Response,
    encode_response,
    problem,
    problem_of,
)
from tricast_proxy.admin_routes import Admin
from tricast_proxy.overview import Overview

_MAX_HEAD_BYTES = 16 * 2**10
_MAX_BODY_BYTES = 2**20
#: For a request, from the end of the one before to the end of its answer.
_PATIENCE_SECONDS = 60.0
_LINGER_SECONDS = 2.0
_MAX_CONNECTIONS = 64
_RECEIVE_BYTES = 16 * 2**10


async def serve(
    config: AdminSection,
    overview: Overview,
    logger: Logger,
    *,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listens and answers until cancelled; starts with the URLs by which it can be reached.

    Raises:
        OSError: the address cannot be had; the filename is the host and the port.
    """
    listeners = await _listen(config.host, config.port)
    urls = tuple(url_of(listener.socket) for listener in listeners)
    admin = Admin(overview, trio.current_time)
    handler = partial(_serve_connection, admin, logger, trio.CapacityLimiter(_MAX_CONNECTIONS))
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handler, listeners)
        task_status.started(urls)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host or None)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise OSError(error.errno, error.strerror, where) from error


async def _serve_connection(
    admin: Admin, logger: Logger, limiter: trio.CapacityLimiter, stream: trio.SocketStream
) -> None:
    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        return  # serve_listeners closes it
    try:
        is_local = ipaddress.ip_address(stream.socket.getsockname()[0].partition("%")[0]).is_loopback
        await _Conversation(admin, stream, is_local=is_local).run()
    except (trio.BrokenResourceError, OSError):
        return
    except Exception:
        logger.exception("admin connection failed")
    finally:
        limiter.release()


class _Conversation:
    """HTTP on one connection.

    Args:
        admin: answers.
        stream: to the client.
        is_local: whether it came by the loopback interface.
    """

    def __init__(self, admin: Admin, stream: trio.SocketStream, *, is_local: bool) -> None:
        self._admin = admin
        self._stream = stream
        self._is_local = is_local
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)

    async def run(self) -> None:
        """Answers requests until the client leaves, asks for nothing for too long, or makes a mistake.

        Raises:
            trio.BrokenResourceError: the client is gone.
        """
        is_open = True
        while is_open:
            is_open = False
            with trio.move_on_after(_PATIENCE_SECONDS):
                is_open = await self._answer_next()

    async def _answer_next(self) -> bool:
        """Answers one request; returns whether another may follow."""
        try:
            head = await self._next_event()
            if not isinstance(head, h11.Request):
                return False
            request = Request(head.method, head.target, list(head.headers), head.http_version)
            body = await self._read_body()
        except h11.RemoteProtocolError as error:
            return await self._send(problem(error.error_status_hint, str(error), code="bad-http", closes=True))
        except RemoteProtocolError as error:
            return await self._send(problem_of(error)._replace(closes=True))
        answer = self._admin.answer(request, body, is_local=self._is_local)
        is_open = await self._send(answer._replace(closes=not request.keeps_alive), has_body=request.method != "HEAD")
        if is_open:
            rest, is_over = self._h11.trailing_data
            self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
            if rest:
                self._h11.receive_data(rest)
            if is_over:
                self._h11.receive_data(b"")
        return is_open

    async def _read_body(self) -> bytes:
        body = bytearray()
        if self._h11.they_are_waiting_for_100_continue:
            await self._stream.send_all(CONTINUE)
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > _MAX_BODY_BYTES:
                raise RemoteProtocolError(f"more than {_MAX_BODY_BYTES} bytes", code="limit-exceeded", status=413)
        return bytes(body)

    async def _next_event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._stream.receive_some(_RECEIVE_BYTES))
        await trio.lowlevel.checkpoint()
        return event

    async def _send(self, answer: Response, *, has_body: bool = True) -> bool:
        await self._stream.send_all(encode_response(answer, has_body=has_body))
        if answer.closes:
            await self._linger()
        return not answer.closes

    async def _linger(self) -> None:
        """Lets the client read the answer: what it has sent and nobody read would reset it away (RFC 9112 9.6)."""
        await self._stream.send_eof()
        left = _MAX_BODY_BYTES
        with trio.move_on_after(_LINGER_SECONDS):
            while left > 0 and (data := await self._stream.receive_some(_RECEIVE_BYTES)):
                left -= len(data)
