"""Results as plots, PNG and SVG: a bar for each server, with its figure. Runs where matplotlib is."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from figures import Spread, spread
from results import REFERENCES, TRICAST, Results, read_results

_HIGHLIGHT, _PLAIN, _REFERENCE, _INK = "#c2410c", "#8aa0b4", "#cfd6dd", "#1f2933"
_TITLES = {"sse": "SSE", "websocket": "WebSocket", "poll": "", "": ""}


class Plot(NamedTuple):
    """One picture: a figure of a scenario, a panel for each transport."""

    file: str
    scenario: str
    key: str
    title: str
    transports: Sequence[str] = ("sse", "websocket")
    is_high_better: bool = False
    digits: int = 1


PLOTS = (
    Plot("fan-out", "fan-out", "cpu_us", "CPU of the server per delivery, µs"),
    Plot(
        "saturation",
        "saturation",
        "per_cpu_second",
        "Deliveries per CPU second at saturation",
        is_high_better=True,
        digits=0,
    ),
    Plot("memory", "connections", "rss_bytes", "Resident memory per idle connection, bytes", digits=0),
    Plot("accept", "connections", "accept_cpu_us", "CPU of the server to accept a connection, µs", digits=0),
    Plot("idle-cpu", "idle-cpu", "cpu_percent", "Idle CPU with default keepalives, % of a core", digits=2),
    Plot("one-to-one", "one-to-one", "cpu_us", "One to one: CPU of the server per event, µs", digits=0),
    Plot("replay", "replay", "cpu_us", "Replay: CPU of the server per event, µs", digits=2),
    Plot("slow", "slow", "cpu_us", "A slow third: CPU of the server per delivery to the others, µs"),
    Plot("long-poll", "long-poll", "cpu_us", "CPU of the server per long-poll cycle, µs", ("poll",), digits=0),
    Plot("publish", "publish", "cpu_us", "CPU of the server per event published, µs", ("",), digits=0),
    Plot("batch", "batch", "cpu_us", "CPU of the server per event published in a batch, µs", ("",)),
    Plot("echo", "echo", "cpu_us", "CPU of the server per message echoed, µs", ("",)),
)


def main() -> None:
    """Draws all that was measured."""
    results, out = read_results(Path(sys.argv[1])), Path(sys.argv[2])
    mpl.use("Agg")
    mpl.rcParams.update({"font.family": "DejaVu Sans", "svg.hashsalt": "bench", "font.size": 10})
    for plot in PLOTS:
        draw(plot, results, out)


def draw(plot: Plot, results: Results, out: Path) -> None:
    """Draws one picture, with a panel for each transport that somebody was measured over."""
    panels = [(one, _collect(plot, one, results)) for one in plot.transports]
    panels = [(transport, bars) for transport, bars in panels if bars]
    if not panels:
        return
    rows = max(len(bars) for _, bars in panels)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.6 * len(panels), 1.2 + 0.36 * rows), squeeze=False, layout="constrained"
    )
    for (transport, bars), panel in zip(panels, axes[0], strict=True):
        _draw_panel(panel, bars, plot, _TITLES[transport])
    direction = "more is better" if plot.is_high_better else "less is better"
    quick = "; a quick run, only to see that it works" if results.is_quick else ""
    figure.suptitle(f"{plot.title} ({direction}{quick})", color=_INK, fontsize=11, x=0.01, ha="left")
    figure.savefig(out / f"{plot.file}.png", dpi=140)
    figure.savefig(out / f"{plot.file}.svg", metadata={"Date": None})
    plt.close(figure)


def _collect(plot: Plot, transport: str, results: Results) -> list[tuple[str, Spread]]:
    """Returns who was measured, the best last: bars are drawn from the bottom up, so it is on top."""
    found = [
        (peer.name, values)
        for peer in results.peers
        if (values := spread(results.pick(plot.scenario, transport, peer.name, plot.key).values())) is not None
    ]
    return sorted(found, key=lambda one: one[1].median, reverse=not plot.is_high_better)


def _draw_panel(panel: Axes, bars: Sequence[tuple[str, Spread]], plot: Plot, title: str) -> None:
    names = [name for name, _ in bars]
    panel.barh(names, [values.median for _, values in bars], color=[_color(name) for name in names], height=0.68)
    widest = max(values.high for _, values in bars)
    for row, (_, values) in enumerate(bars):
        if values.repetitions > 1:
            panel.plot([values.low, values.high], [row, row], color=_INK, linewidth=1, solid_capstyle="butt")
        text = f"{values.median:,.{plot.digits}f}"
        panel.text(max(values.high, values.median) + widest * 0.015, row, text, va="center", color=_INK, fontsize=9)
    panel.set_xlim(0, widest * 1.2)
    panel.set_title(title, loc="left", color=_INK, fontsize=10)
    panel.xaxis.set_visible(False)
    panel.tick_params(axis="y", length=0, colors=_INK)
    for label in panel.get_yticklabels():
        label.set_fontweight("bold" if label.get_text().startswith(TRICAST) else "normal")
    for side in ("top", "right", "bottom", "left"):
        panel.spines[side].set_visible(False)


def _color(name: str) -> str:
    if name.startswith(TRICAST):
        return _HIGHLIGHT
    return _REFERENCE if name in REFERENCES else _PLAIN


if __name__ == "__main__":
    main()
