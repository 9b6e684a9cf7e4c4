"""The servers under test: real processes that are killed, stopped and started again."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from clients import Closed, ask

from engines.daemon import HOST, Daemon

#: How servers tell of bugs of their own, and how Python does.
_BUG = re.compile(r"connection failed|^Traceback|was never awaited|Exception ignored")
_TOLD_LINES = 40
#: After so long without an answer it is asked again: it may have been killed meanwhile.
_ANSWER_SECONDS = 10.0
_PROGRAM = "from tricast.cli import main; main()"


class TricastServer(Daemon):
    """``tricast serve``, at the same port whenever it runs.

    Attributes:
        number: which of the servers it is.
        is_wanted: whether it has to run now.
    """

    def __init__(self, number: int, folder: Path, sections: Mapping[str, Any]) -> None:
        super().__init__(folder)
        self.number = number
        self.is_wanted = False
        self._begun_at = 0
        own: dict[str, Mapping[str, Any]] = {
            "server": {"port": self.port},
            "drain": {"period": "0s", "grace": "0s"},
        }
        (folder / "server.toml").write_text(_toml({**own, **sections}), encoding="utf-8")

    @property
    def name(self) -> str:
        return f"server {self.number}"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", _PROGRAM, "serve", "--config", "server.toml"]

    def is_ready(self) -> bool:
        """Whether it listens, since it was started last."""
        return "listening on http" in self.log[self._begun_at :]

    def launch(self) -> None:
        self._begun_at = len(self.log)
        super().launch()

    def wipe(self) -> None:
        """It keeps nothing."""

    def complaints(self) -> list[str]:
        """What it has logged of bugs of its own, with what follows."""
        lines = self.log.splitlines()
        return ["\n".join(lines[at : at + _TOLD_LINES]) for at, line in enumerate(lines) if _BUG.search(line)]

    async def supervise(self, problems: list[str]) -> None:
        """Starts it when it is wanted and does not run, as a service manager does.

        One that cannot have its log at the start ends with that; one that ends later, by itself, has a bug.
        """
        while True:
            if self.is_wanted and not self.is_running:
                if self._process is not None and self.is_ready():
                    problems.append(f"{self.name} ended by itself: {self.log[-1000:]}")
                self._end()
                self.launch()
            await trio.sleep(0.2)

    async def wait_well(self) -> None:
        """Returns when it says that it is ready."""
        while True:
            with trio.move_on_after(_ANSWER_SECONDS):
                try:
                    if (await ask(self.url, "GET", "/readyz")).status == 200:
                        return
                except (OSError, Closed):
                    pass
            await trio.sleep(0.1)


def _toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The sections as TOML; the values are strings, numbers, lists and booleans, which JSON writes in the same way."""
    lines = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items()), ""]
    return "\n".join(lines)
