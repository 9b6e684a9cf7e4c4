"""Results as Markdown: a table per scenario and transport, and a summary that the README shows."""

from collections.abc import Sequence
from pathlib import Path

from figures import Spread, divide, spread
from results import FLOOR, TRICAST, PeerFacts, Results
from scenarios import SCENARIOS
from scenarios.base import Column, Scenario

FILE = "results.md"
NOTHING = "—"
README_BEGIN = "<!-- written by scripts/bench/run --readme: begin -->"
README_END = "<!-- written by scripts/bench/run --readme: end -->"
_QUICK = "**From a quick run: everything is smaller, and the figures only show that the bench works.**"
_TRANSPORTS = {"sse": "SSE", "websocket": "WebSocket", "poll": "long polling", "": ""}
#: What the summary shows: scenario, transport, figure, digits, head of the column.
_SUMMARY = (
    ("fan-out", "sse", "cpu_us", 1, "CPU µs per delivery, SSE"),
    ("fan-out", "websocket", "cpu_us", 1, "the same, WebSocket"),
    ("saturation", "sse", "per_cpu_second", 0, "deliveries per CPU second at saturation, SSE"),
    ("saturation", "websocket", "per_cpu_second", 0, "the same, WebSocket"),
    ("connections", "sse", "rss_bytes", 0, "bytes per idle connection, SSE"),
    ("connections", "websocket", "rss_bytes", 0, "the same, WebSocket"),
    ("connections", "sse", "accept_cpu_us", 0, "CPU µs to accept, SSE"),
    ("connections", "websocket", "accept_cpu_us", 0, "the same, WebSocket"),
)


def render(results: Results) -> str:
    """Returns the whole report."""
    parts = ["# Measurements", _introduce(results), "## Summary", render_summary(results)]
    for scenario in SCENARIOS:
        measured = [one for one in scenario.transports if results.was_measured(scenario.name, one)]
        if measured:
            parts += [f"## {scenario.title}", _describe(scenario, results)]
        for transport in measured:
            parts += [f"### {_TRANSPORTS[transport]}"] if transport else []
            parts += [_render_table(results, scenario, transport), *_render_failures(results, scenario, transport)]
    parts += ["## Who was measured", _render_peers(results.peers)]
    return "\n\n".join(parts) + "\n"


def render_summary(results: Results) -> str:
    """Returns the table that shows the main figures of everybody; a column that nobody has is left out."""
    columns = [one for one in _SUMMARY if results.was_measured(one[0], one[1])]
    if not columns:
        return "Nothing of what is summarized was measured."
    rows = []
    for peer in results.peers:
        if peer.missing:
            continue
        cells = []
        for scenario, transport, key, digits, _ in columns:
            found = spread(results.pick(scenario, transport, peer.name, key).values())
            cells.append(_format(found.median, digits) if found else _excuse(results, scenario, transport, peer.name))
        if set(cells) != {NOTHING}:
            rows.append([peer.name, *cells])
    return _draw(["", *(one[4] for one in columns)], rows)


def update_readme(readme: Path, results: Results, folder: str) -> None:
    """Puts the summary and two plots between the marks in the README."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(README_BEGIN)
    _, _, after = rest.partition(README_END)
    readme.write_text(before + render_readme(results, folder) + after, encoding="utf-8")


def render_readme(results: Results, folder: str) -> str:
    """Returns what stands in the README, marks included."""
    parts = [_QUICK] if results.is_quick else []
    parts.append(render_summary(results))
    for name, title in (("fan-out", "CPU per delivery"), ("saturation", "Deliveries per CPU second")):
        if any(one.scenario == name and one.values for one in results.measurements):
            parts.append(f"![{title}]({folder}/{name}.svg)")
    return README_BEGIN + "\n" + "\n\n".join(parts) + "\n" + README_END


def _introduce(results: Results) -> str:
    machine = results.machine
    repetitions = len({one.repetition for one in results.measurements})
    text = (
        f"Made {results.made[:10]} on {machine.get('cores')} cores ({machine.get('processor')}), "
        f"{machine.get('memory_gib')} GiB, {machine.get('system')} {machine.get('kernel')}, "
        f"Python {machine.get('python')}; clients and servers on the same machine, in turn.\n\n"
        f"Repetitions: {repetitions}; figures are medians, in brackets the lowest and the highest. CPU is that of all "
        "processes of a server, user and system. Ratios are taken within each repetition. — means that a server "
        "cannot do this."
    )
    loads = [one.load_average for one in results.measurements]
    if loads:
        text += (
            f"\n\nPriority (nice) of servers and clients: {results.nice}. Processes that wanted a core meanwhile, "
            f"whoever's (load average): {min(loads):.1f} to {max(loads):.1f}."
        )
    if results.is_quick:
        text += f"\n\n{_QUICK}"
    return text


def _describe(scenario: Scenario, results: Results) -> str:
    return scenario.about.format(**results.sizes.get(scenario.name, scenario.sizes))


def _render_table(results: Results, scenario: Scenario, transport: str) -> str:
    columns = [one for one in scenario.columns if _anybody(results, scenario, transport, one.key)]
    main = scenario.columns[0]
    has_floor = bool(results.pick(scenario.name, transport, FLOOR, main.key))
    heads = ["", *(one.label for one in columns), *([f"× {FLOOR}"] if has_floor else [])]
    rows = []
    for peer in results.peers:
        if peer.missing or scenario.only not in ("", peer.name):
            continue
        cells = [_render_cell(results, scenario, transport, peer.name, one, one == main) for one in columns]
        rows.append(
            [peer.name, *cells, *([_render_ratio(results, scenario, transport, peer.name)] if has_floor else [])]
        )
    return _draw(heads, rows)


def _anybody(results: Results, scenario: Scenario, transport: str, key: str) -> bool:
    found = (results.pick(scenario.name, transport, peer.name, key) for peer in results.peers)
    return key == scenario.columns[0].key or any(found)


def _render_cell(results: Results, scenario: Scenario, transport: str, peer: str, column: Column, is_main: bool) -> str:
    found = spread(results.pick(scenario.name, transport, peer, column.key).values())
    if found is None:
        return _excuse(results, scenario.name, transport, peer)
    return _format_spread(found, column.digits) if is_main else _format(found.median, column.digits)


def _render_ratio(results: Results, scenario: Scenario, transport: str, peer: str) -> str:
    key = scenario.columns[0].key
    mine, floor = (results.pick(scenario.name, transport, name, key) for name in (peer, FLOOR))
    ratio = divide(mine, floor)
    return NOTHING if ratio is None else _format(ratio.median, 2)


def _excuse(results: Results, scenario: str, transport: str, peer: str) -> str:
    return "failed" if results.failures(scenario, transport, peer) else NOTHING


def _render_failures(results: Results, scenario: Scenario, transport: str) -> list[str]:
    lines = [
        f"- {peer.name} failed: {_escape(reason)}"
        for peer in results.peers
        for reason in results.failures(scenario.name, transport, peer.name)
    ]
    return ["\n".join(lines)] if lines else []


def _render_peers(peers: Sequence[PeerFacts]) -> str:
    rows = [
        [peer.name, _escape(peer.about), _escape(f"not measured: {peer.missing}" if peer.missing else peer.version)]
        for peer in peers
    ]
    return _draw(["", "what it is", "version"], rows, is_text=True)


def _draw(heads: Sequence[str], rows: Sequence[Sequence[str]], *, is_text: bool = False) -> str:
    rule = "---" if is_text else "---:"
    lines = [heads, ["---", *[rule] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_emphasize(line))} |" for line in lines)


def _emphasize(line: Sequence[str]) -> list[str]:
    """Returns the cells of a line, the ones with figures of Tricast in bold."""
    is_ours = line[0].startswith(TRICAST)
    return [f"**{cell}**" if is_ours and len(cell) < 40 and cell != NOTHING else cell for cell in line]


def _format(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def _format_spread(found: Spread, digits: int) -> str:
    text = _format(found.median, digits)
    if found.repetitions > 1:
        text += f" ({_format(found.low, digits)}–{_format(found.high, digits)})"
    return text


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
