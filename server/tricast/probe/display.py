"""What a run is doing and what it knows by now, on stderr."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TextIO

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tricast.probe.run import Outcome

_SHOW_SECONDS = 0.5
#: Where nobody watches, a line now and then is enough.
_LINE_SECONDS = 5.0


@asynccontextmanager
async def shown(outcome: Outcome, stream: TextIO) -> AsyncIterator[None]:
    """Shows the run while the block lasts: renewed in place on a terminal, and else a line now and then."""
    console = Console(file=stream, highlight=False)
    async with trio.open_nursery() as nursery:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                began = trio.current_time()
                nursery.start_soon(_keep, _SHOW_SECONDS, lambda: live.update(_picture(outcome, began), refresh=True))
                yield
                nursery.cancel_scope.cancel()
        else:
            began = trio.current_time()
            nursery.start_soon(_keep, _LINE_SECONDS, lambda: _write(stream, f"{line(outcome, began)}\n"))
            yield
            nursery.cancel_scope.cancel()


async def _keep(seconds: float, show: Callable[[], None]) -> None:
    while True:
        await trio.sleep(seconds)
        show()


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _picture(outcome: Outcome, began: float) -> Group:
    known = [Text(f"  {words}") for words in outcome.progress()]
    return Group(Text(_heading(outcome, began), "bold", no_wrap=True, overflow="ellipsis"), *known)


def line(outcome: Outcome, began: float) -> str:
    """The run in one line.

    Args:
        outcome: of the run.
        began: ``trio.current_time()`` of its beginning.
    """
    return ": ".join(filter(None, (_heading(outcome, began), "; ".join(outcome.progress()))))


def _heading(outcome: Outcome, began: float) -> str:
    longest = f" of at most {outcome.plan.seconds / outcome.plan.speed:.0f} s" if outcome.timers is not None else ""
    return f"{outcome.doing}, {trio.current_time() - began:.0f} s{longest}"
