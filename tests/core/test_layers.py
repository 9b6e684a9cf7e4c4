"""Imports point one way: what is below does not know what is above."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"tricast": ROOT / "server" / "tricast", "tricast_proxy": ROOT / "proxy" / "tricast_proxy"}

#: The parts of the server, lowest first. A part may import what stands in a row above it, and its own modules.
LAYERS = (
    ("errors", "sent", "quotas", "addresses"),
    ("lifetime", "garbage", "listeners", "unix_sockets", "activation", "log_urls"),
    ("event", "schema"),
    ("config", "command_line"),
    ("logs", "returns", "exposure"),
    ("access", "certificates"),
    ("wire",),
    ("log",),
    ("hub", "stores"),
    ("connection", "sweep", "accounts", "memory", "leases"),
    ("tls",),
    ("places", "introduction"),
    ("runtime",),
    ("transports",),
    ("publish", "metrics", "descriptors", "handlers", "terminal", "request_body", "service_manager"),
    ("http",),
    ("origins",),
    ("upgrade",),
    ("gate",),
    ("companion",),
    ("routes",),
    ("listening",),
    ("server",),
    ("workers",),
    ("",),  # the package itself: what it offers to those who import it
    ("client",),
    ("bench",),
    ("probe",),
    ("log_command",),
    ("cli",),
    ("__main__",),
)
#: Parts that may use less than what is below them.
ALLOWED = {
    "client": {"errors", "event", "wire"},
    "bench": {"errors", "descriptors", "client"},
    "log_command": {
        "errors",
        "event",
        "schema",
        "config",
        "logs",
        "log_urls",
        "log",
        "stores",
        "client",
        "command_line",
    },
    "probe": {"errors", "event", "config", "wire", "client", "command_line"},
    "tricast_proxy": {
        "errors",
        "event",
        "schema",
        "config",
        "sent",
        "wire",
        "connection",
        "certificates",
        "tls",
        "descriptors",
        "logs",
        "command_line",
        "lifetime",
        "listeners",
    },
}
_PURE_IN_PROBE = (
    "advice",
    "arrivals",
    "blame",
    "cells",
    "conditions",
    "differences",
    "findings",
    "fingerprint",
    "known",
    "limits",
    "measured",
    "recommend",
    "verdicts",
)
_PURE_IN_BENCH = ("blocks", "histogram", "http_answers", "ledger", "schedule", "streams")
#: What must do without I/O, and so cannot do any by accident.
SANS_IO = {
    **{f"tricast.bench.{name}": {"trio", "select", "socket", "ssl", "time"} for name in _PURE_IN_BENCH},
    **{f"tricast.probe.{name}": {"trio", "select", "socket", "ssl", "time"} for name in _PURE_IN_PROBE},
    "tricast.wire": {"trio", "anyio", "asyncio", "select", "selectors", "socket", "ssl", "threading", "time"},
    "tricast.hub": {"trio", "anyio", "asyncio", "select", "selectors", "socket", "ssl", "threading"},
    "tricast.log.window": {"trio", "anyio", "asyncio", "select", "selectors", "socket", "ssl", "threading", "sqlite3"},
    "tricast.log.memory": {"trio", "anyio", "asyncio", "select", "selectors", "socket", "ssl", "threading"},
    "tricast.places": {"trio", "anyio", "select", "socket", "time"},
    "tricast.addresses": {"trio", "anyio", "select", "socket", "time"},
    "tricast.quotas": {"trio", "anyio", "select", "socket", "time"},
    "tricast.returns": {"trio", "anyio", "select", "socket", "time"},
    "tricast.event": {"trio", "socket", "time"},
    "tricast.publish": {"trio", "socket", "time"},
    "tricast.schema": {"trio", "socket"},
    "tricast.config": {"trio", "socket"},
}


class Import(NamedTuple):
    """One module that imports another."""

    importer: str
    imported: str
    line: int


def modules_of(package: str, folder: Path) -> dict[str, str]:
    """The dotted name and the source of each module."""
    return {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path.read_text()
        for path in folder.rglob("*.py")
    }


@cache
def import_statements(source: str) -> list[ast.Import | ast.ImportFrom]:
    """All of them, also within functions and for the type checker alone."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_of(name: str, source: str, known: Mapping[str, str]) -> Iterator[Import]:
    """Everything that a module imports."""
    for node in import_statements(source):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, node.lineno) for alias in node.names)
        else:
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner != "tricast.__version__":  # the one thing in the package itself that anybody may have
                    yield Import(name, inner if inner in known else node.module, node.lineno)


def part_of(module: str) -> str:
    """The part of the server that a module belongs to; the package itself is the empty one."""
    return module.removeprefix("tricast").removeprefix(".").partition(".")[0]


def faults(sources: Mapping[str, str]) -> list[Import]:
    """The imports that point the wrong way."""
    rank = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    return [
        found
        for name, source in sources.items()
        for found in imports_of(name, source, sources)
        if _is_fault(found, rank)
    ]


def _is_fault(found: Import, rank: Mapping[str, int]) -> bool:
    for pure, forbidden in SANS_IO.items():
        is_inside = f"{found.importer}.".startswith(f"{pure}.")
        if is_inside and found.imported.partition(".")[0] in forbidden:
            return True
    importer, imported = (name.partition(".")[0] for name in (found.importer, found.imported))
    if imported not in PACKAGES:
        return False
    if importer != "tricast" or imported != "tricast":
        return imported != importer and not (
            importer == "tricast_proxy" and part_of(found.imported) in ALLOWED["tricast_proxy"]
        )
    below, above = part_of(found.imported), part_of(found.importer)
    if below == above:
        return False
    return rank[below] >= rank[above] or below not in ALLOWED.get(above, rank)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {
        name: source for package, folder in PACKAGES.items() for name, source in modules_of(package, folder).items()
    }


def test_imports_point_one_way(sources: dict[str, str]) -> None:
    assert faults(sources) == []


def test_every_part_has_its_place(sources: dict[str, str]) -> None:
    listed = [part for parts in LAYERS for part in parts]
    assert len(listed) == len(set(listed))
    assert {part_of(name) for name in sources if name.partition(".")[0] == "tricast"} == set(listed)


def test_what_must_do_without_io_is_there(sources: dict[str, str]) -> None:
    assert set(SANS_IO) <= set(sources)


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("tricast.errors", "import tricast.event"),
        ("tricast.errors", "from tricast.sent import Sent"),
        ("tricast.event", "from tricast.config import Config"),
        ("tricast.event", "import time"),
        ("tricast.wire.sse", "from tricast.hub import Hub"),
        ("tricast.wire.sse", "import trio"),
        ("tricast.wire.sse", "from trio.testing import MockClock"),
        ("tricast.wire", "import socket"),
        ("tricast.wire.form", "from time import time"),
        ("tricast.log.memory", "import trio"),
        ("tricast.log.base", "from tricast import hub"),
        ("tricast.hub", "import socket"),
        ("tricast.hub", "from tricast.connection import Connection"),
        ("tricast.connection", "from tricast.sweep import Wheel"),
        ("tricast.transports.stream", "from tricast.http import Exchange"),
        ("tricast.http", "def f():\n    from tricast.server import serve"),
        ("tricast.server", "if TYPE_CHECKING:\n    from tricast.cli import main"),
        ("tricast.server", "from tricast import Config"),
        ("tricast.server", "from tricast.client import publish"),
        ("tricast.server", "import tricast_proxy"),
        ("tricast.cli", "from tricast_proxy.rules import Rule"),
        ("tricast.client.inbox", "from tricast.hub import Hub"),
        ("tricast.client.inbox", "from tricast.cli import main"),
        ("tricast.bench.streams", "from tricast.wire import sse"),
        ("tricast.bench.streams", "import trio"),
        ("tricast_proxy.rules", "from tricast.hub import Hub"),
        ("tricast_proxy.rules", "from tricast import server"),
        ("tricast_proxy.rules", "from tricast import serve"),
        ("tricast_proxy.rules", "import tricast"),
        ("tricast.client.inbox", "from tricast import Config"),
        ("tricast_proxy", "import tricast.transports.stream"),
    ],
)
def test_an_import_that_points_the_wrong_way(sources: dict[str, str], importer: str, line: str) -> None:
    added = {**sources, importer: f"{sources.get(importer, '')}\n{line}\n"}
    (found,) = faults(added)
    assert found.importer == importer


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("tricast.connection", "import socket, time"),
        ("tricast.wire.sse", "from tricast.wire import form"),
        ("tricast.cli", "from tricast.server import serve"),
        ("tricast.client.inbox", "from tricast import __version__"),
        ("tricast_proxy.rules", "from tricast.wire.http1 import Request\nfrom tricast_proxy import other"),
        ("tricast_proxy.rules", "from tricast import errors, event, config, sent, connection, __version__"),
    ],
)
def test_an_import_that_points_the_right_way(sources: dict[str, str], importer: str, line: str) -> None:
    assert faults({**sources, importer: f"{sources.get(importer, '')}\n{line}\n"}) == []


def test_a_relative_import(sources: dict[str, str]) -> None:
    with pytest.raises(AssertionError, match="relative"):
        faults({**sources, "tricast.wire.sse": "from . import form"})
