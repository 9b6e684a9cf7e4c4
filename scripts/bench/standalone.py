"""What the programs that measure one thing have in common: how they begin, what they leave behind, and how they end."""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from load import LoadError
from peers.base import PeerError
from processes import adopt_orphans, end_descendants
from publisher import PublishError
from scenarios.base import MeasureError

Figures = dict[str, Any]


def run(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Path], Figures],
    render: Callable[[Figures], str],
    is_fine: Callable[[Figures], bool],
) -> int:
    """Measures, writes the figures into the folder ``options.out`` and prints them; returns the exit status.

    Args:
        name: the program's, and that of its results.
        options: from the command line.
        measure: returns the figures; gets a folder of its own.
        render: makes a Markdown table of them.
        is_fine: whether the exit status is 0.
    """
    adopt_orphans()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            figures = measure(options, Path(folder))
    except (MeasureError, PeerError, LoadError, PublishError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        end_descendants()
    table = render(figures)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (options.out / f"{name}.md").write_text(table, encoding="utf-8")
    print(table, end="")
    return 0 if is_fine(figures) else 1


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
