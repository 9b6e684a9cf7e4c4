"""The servers that Tricast is measured beside, each behind the same small interface (see `peers.base`)."""

from peers.base import Capability, Peer
from peers.centrifugo import Centrifuge, Centrifugo
from peers.mercure import Mercure
from peers.nchan import Nchan
from peers.own import CProgram, GoProgram, Prototype, PythonProgram
from peers.tricast import Tricast

#: In the order of the tables.
PEERS: tuple[Peer, ...] = (
    Tricast(),
    Prototype(
        "Trio prototype",
        "the bare delivery path on Trio, h11 and wsproto: no log, no topics, no features",
        "prototype.py",
        Capability.SSE,
        Capability.WEBSOCKET,
    ),
    CProgram(
        "C floor",
        "a loop of send() in C behind epoll, one thread: what the kernel costs",
        "floor.c",
        Capability.SSE,
        Capability.WEBSOCKET,
    ),
    Nchan(),
    GoProgram(
        "Go net/http SSE",
        "net/http, a channel per subscriber, a keepalive every 30 s, all cores (GOMAXPROCS as it is)",
        "go/sse",
        "",
        Capability.SSE,
        Capability.TOPICS,
    ),
    GoProgram(
        "Go gorilla/websocket",
        "a reading and a writing goroutine per connection, ping every 30 s, read deadline 60 s, all cores",
        "go/gorilla",
        "github.com/gorilla/websocket",
        Capability.WEBSOCKET,
        Capability.TOPICS,
        Capability.ECHO,
    ),
    Centrifugo(),
    Centrifuge(),
    Mercure(),
    PythonProgram(
        "websockets",
        "websockets on asyncio with uvloop and its broadcast, one process, no compression, its default keepalive",
        "ws_asyncio.py",
        "websockets uvloop",
        Capability.WEBSOCKET,
        Capability.TOPICS,
        Capability.ECHO,
    ),
    PythonProgram(
        "websockets.trio",
        "websockets on Trio, a memory channel and a writer task per subscriber, no compression, its default keepalive",
        "ws_trio.py",
        "websockets trio",
        Capability.WEBSOCKET,
        Capability.TOPICS,
        Capability.ECHO,
    ),
    PythonProgram(
        "sse-starlette on uvicorn",
        "a queue per subscriber, uvloop and httptools, one process, access log off, ping every 15 s",
        "starlette_sse.py",
        "sse-starlette starlette uvicorn uvloop httptools",
        Capability.SSE,
        Capability.TOPICS,
    ),
    PythonProgram(
        "Hypercorn on Trio",
        "a plain ASGI application, a memory channel per subscriber, one process, a keepalive every 15 s",
        "hypercorn_trio.py",
        "hypercorn trio h11",
        Capability.SSE,
        Capability.TOPICS,
    ),
    PythonProgram(
        "trio-websocket",
        "a memory channel and a writer task per subscriber, one process, ping every 30 s",
        "trio_ws.py",
        "trio-websocket trio wsproto",
        Capability.WEBSOCKET,
        Capability.TOPICS,
        Capability.ECHO,
    ),
    PythonProgram(
        "aiohttp",
        "a queue per subscriber, uvloop, one process, access log off, comment every 15 s or heartbeat every 30 s",
        "aiohttp_both.py",
        "aiohttp uvloop",
        Capability.SSE,
        Capability.WEBSOCKET,
        Capability.TOPICS,
        Capability.ECHO,
    ),
)
