"""What a run looks like while it goes on, on stderr, and its results, on stdout."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tricast.bench.coordinator import State
from tricast.bench.results import Result, advice

_NAMES = {"sse": "SSE", "ws": "WebSocket", "poll": "long polling", "mix": "all"}
#: Where nobody watches, a line now and then is enough.
_LINE_SECONDS = 5.0
_BAR_WIDTH = 40
#: For what nothing was measured.
_NOTHING = "—"


@contextmanager
def shown(stream: TextIO) -> Iterator[Callable[[State], None]]:
    """Yields what shows how far a run is: a display that renews itself on a terminal, and else a line now and then."""
    console = Console(file=stream)
    if not console.is_terminal:
        yield Lines(stream).show
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        rates = Rates()
        yield lambda state: live.update(_picture(state, rates.of(state)), refresh=True)


class Rates:
    """Deliveries a second, from one look to the next."""

    def __init__(self) -> None:
        self._last = (0.0, 0)
        self._rate = 0.0

    def of(self, state: State) -> float:
        """The rate since the state before this one."""
        now = time.monotonic()
        before, events = self._last
        if state.events < events:  # another run
            events = 0
        if now > before:
            self._rate = (state.events - events) / (now - before)
        self._last = (now, state.events)
        return self._rate


class Lines:
    """Plain lines.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + _LINE_SECONDS

    def show(self, state: State) -> None:
        """Writes a line, if the last one was some time ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_SECONDS
            self._stream.write(
                f"{_NAMES[state.transport]}, {state.phase}: {state.opened:,} of {state.subscribers:,} subscribers, "
                f"{state.published:,} of {state.planned:,} events published, {state.events:,} delivered, "
                f"{state.errors:,} errors\n"
            )
            self._stream.flush()


def _picture(state: State, rate: float) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row("subscribers", ProgressBar(state.subscribers, state.opened, _BAR_WIDTH), f"{state.opened:,}")
    table.add_row("published", ProgressBar(state.planned, state.published, _BAR_WIDTH), f"{state.published:,}")
    table.add_row("delivered", f"{state.events:,}", f"{rate:,.0f}/s")
    table.add_row("p99 so far", f"{state.p99_ms:,.1f} ms" if state.events else _NOTHING, "")
    style = "red" if state.errors else ""
    table.add_row("errors", Text(f"{state.errors:,}", style), "")
    seconds = f" {state.seconds:.0f} s" if state.seconds > 0 else ""
    return Group(Text(f"{_NAMES[state.transport]}: {state.phase}{seconds}", "bold"), table)


def print_json(results: Sequence[Result], stream: TextIO, *, compared: bool) -> None:
    """Writes one JSON object: the result, or with ``compared`` one for each transport by its name."""
    found: object = {result.transport: result for result in results} if compared else results[0]
    stream.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")


def print_table(results: Sequence[Result], stream: TextIO, *, compared: bool) -> None:
    """Writes the results side by side, for people.

    Args:
        results: of one run, or with ``compared`` of one for each transport.
        stream: where to.
        compared: whether to add what helps to choose.
    """
    console = Console(file=stream, highlight=False)
    columns = results if compared else [*results[0].by_transport.values(), results[0]]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    for result in columns:
        table.add_column(_NAMES[result.transport], justify="right")
    for label, value in _ROWS.items():
        table.add_row(label, *(value(result) for result in columns))
    console.print(table)
    for words in dict.fromkeys(_said(results)):
        console.print(Text(words), soft_wrap=True)
    if compared:
        console.print()
        for words in advice(results):
            console.print(Text(f"- {words}"), soft_wrap=True)


def _said(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        name = f"{_NAMES[result.transport]}: " if len(results) > 1 else ""
        if result.was_interrupted:
            yield f"{name}interrupted: these are the results so far"
        for failure in result.failures:
            yield f"{name}failed: {failure}"
        for kind, count in sorted(result.errors.items()):
            yield f"{name}error: {kind}: {count} times"
        for reason, count in sorted(result.gaps.items()):
            yield f"{name}gap announced: {reason}: {count} times"
        for warning in result.warnings:
            yield f"{name}warning: {warning}"


def _milliseconds(percentile: str) -> Callable[[Result], str]:
    return lambda result: _or_nothing(getattr(result.latency_ms, percentile), ",.2f", " ms")


def _or_nothing(value: float | None, form: str, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value:{form}}{unit}"


_ROWS: dict[str, Callable[[Result], str]] = {
    "subscribers opened": lambda result: f"{result.opened:,}",
    "opened per second": lambda result: f"{result.opened_per_second:,.0f}",
    "events published": lambda result: f"{result.published:,}",
    "published per second": lambda result: f"{result.published_per_second:,.1f}",
    "events delivered": lambda result: f"{result.deliveries:,}",
    "delivered per second": lambda result: f"{result.deliveries_per_second:,.0f}",
    "lost": lambda result: f"{result.lost:,}",
    "duplicates": lambda result: f"{result.duplicates:,}",
    "out of order": lambda result: f"{result.out_of_order:,}",
    "missed, as announced": lambda result: f"{result.missed:,}",
    "latency p50": _milliseconds("p50"),
    "latency p90": _milliseconds("p90"),
    "latency p99": _milliseconds("p99"),
    "latency p99.9": _milliseconds("p99_9"),
    "latency max": _milliseconds("max"),
    "bytes per event": lambda result: _or_nothing(result.bytes_per_event, ",.0f"),
    "requests per event": lambda result: _or_nothing(result.requests_per_event, ",.3f"),
    "reconnects, with warm-up": lambda result: f"{result.reconnects:,}",
    "errors, with warm-up": lambda result: f"{sum(result.errors.values()):,}",
    "generator CPU": lambda result: f"{result.generator.busiest_cpu:.0%}",
}
