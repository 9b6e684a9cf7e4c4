"""What a run has found, on stdout: for people, or as JSON for programs."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tricast.probe.advice import PROBLEMS, Snippet, advise
from tricast.probe.findings import Finding, Verdict
from tricast.probe.fingerprint import NAMES
from tricast.probe.measured import timers_of
from tricast.probe.recommend import Setting, recommend, remarks
from tricast.probe.run import TRANSPORTS, Outcome
from tricast.probe.verdicts.connections import Guess, guess

SCHEMA = 1

_SIGNS = {
    Verdict.OK: ("✓", "green"),
    Verdict.INFO: ("·", "dim"),
    Verdict.ADVICE: ("!", "yellow"),
    Verdict.BROKEN: ("✗", "bold red"),
    Verdict.UNKNOWN: ("?", "magenta"),
}
#: What is read together, and which checks tell of it.
_SECTIONS = (
    ("Event streams, WebSockets and polls", ("P3", "P4", "P5", "P6")),
    ("Timers", ("P12", "P13", "P14", "P17")),
    ("Requests", ("P1", "P7", "P9", "P10", "P11", "P16")),
    ("Limits", ("P8",)),
)
_MARGIN = "  "
#: How long lines are where nobody watches.
_WIDTH = 100
_TITLE_WIDTH = 24


class Report(NamedTuple):
    """A run with what follows from it.

    Attributes:
        outcome: the run.
        advised: the proxies that advice is wanted for; None for those that seem to be there.
        exit_code: what the command ends with.
        failed: the conditions of ``--fail-on`` that hold.
        unknown: those of which it was not found out.
    """

    outcome: Outcome
    advised: Sequence[str] | None
    exit_code: int
    failed: Sequence[str] = ()
    unknown: Sequence[str] = ()

    @property
    def guess(self) -> Guess | None:
        """Who is in front where nobody gave a name."""
        return None if self.outcome.proxies else guess(self.outcome.findings)

    @property
    def proxies(self) -> Sequence[str]:
        """Whose configuration advice is for."""
        if self.advised is not None:
            return self.advised
        return self.outcome.proxies or ([] if self.guess is None else [self.guess.proxy])

    @property
    def problems(self) -> list[str]:
        """What went wrong, as ``advice`` names it."""
        bad = (f.advice for f in self.outcome.findings if f.verdict in (Verdict.ADVICE, Verdict.BROKEN) and f.advice)
        return [problem for problem in dict.fromkeys(bad) if problem in PROBLEMS]

    @property
    def snippets(self) -> list[tuple[Snippet, list[str]]]:
        """What to write into the configuration of the proxies."""
        return list(advise(self.proxies, self.problems))

    @property
    def unadvised(self) -> list[str]:
        """Titles of what went wrong and could be put right in the proxy, if it were known how."""
        shown = {problem for snippet, _ in self.snippets for line in snippet.lines for problem in line.against}
        return _titles(
            (f for f in self.outcome.findings if f.advice in PROBLEMS and f.advice not in shown),
            Verdict.BROKEN,
            Verdict.ADVICE,
        )

    @property
    def settings(self) -> list[Setting]:
        """Settings of the server."""
        return recommend(timers_of(self.outcome.findings))


def print_json(report: Report, stream: TextIO) -> None:
    """Writes one JSON object."""
    stream.write(msgspec.json.format(msgspec.json.encode(_as_data(report)), indent=2).decode() + "\n")


def _as_data(report: Report) -> dict[str, Any]:
    outcome = report.outcome
    return {
        "schema": SCHEMA,
        "url": outcome.plan.url,
        "origin": outcome.plan.origin,
        "is_companion": outcome.is_companion,
        "was_interrupted": outcome.was_interrupted,
        "exit_code": report.exit_code,
        "failed": report.failed,
        "unknown": report.unknown,
        "notes": outcome.notes,
        "speed": outcome.plan.speed,
        "proxies": outcome.proxies,
        "probably": None if report.guess is None else report.guess.proxy,
        "findings": [msgspec.to_builtins(finding) for finding in outcome.findings],
        "settings": [setting._asdict() for setting in report.settings],
        "remarks": remarks(timers_of(outcome.findings)),
        "advice": [
            {"proxy": snippet.proxy, "where": snippet.where, "snippet": "\n".join(lines)}
            for snippet, lines in report.snippets
        ],
    }


def print_report(report: Report, stream: TextIO) -> None:
    """Writes it for people: with colours on a terminal, and otherwise plain lines."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDTH)
    outcome = report.outcome
    for note in outcome.notes:
        _print(console, Text(_harmless(note), "yellow"))
    in_front = [f for f in outcome.findings if f.check == "P2"]
    for finding in in_front:
        likely = report.guess
        words = f"probably {NAMES[likely.proxy]} ({likely.why})" if likely is not None else finding.summary
        _print(console, Text.assemble(("In front: ", "bold"), _harmless(words)))
    if outcome.plan.speed != 1:
        _print(console, Text(f"Timers are told at {outcome.plan.speed:g} times what was measured, for --speed."))
    for heading, checks in _SECTIONS:
        found = [f for check in checks for f in outcome.findings if f.check == check and not _says_nothing(f, outcome)]
        if found:
            console.print()
            console.print(Text(heading, "bold"))
            _print_findings(console, found)
    for line in _closing(report):
        _print(console, line)


def _print(console: Console, text: Text) -> None:
    """Wraps words and not what is to be copied: that has ``no_wrap``."""
    if not console.is_terminal and not text.no_wrap:
        text = Text("\n".join(_lines(text.plain, _WIDTH)), no_wrap=True)
    console.print(text, soft_wrap=bool(text.no_wrap))


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _says_nothing(finding: Finding, outcome: Outcome) -> bool:
    """Whether it only says that there are no WebSockets, which has been said."""
    is_theirs = finding.check in ("P9", "P13") and finding.title.startswith("ws ")
    has_none = any(each.check == "P3" and each.verdict is Verdict.BROKEN for each in outcome.findings)
    return is_theirs and has_none and finding.verdict is Verdict.UNKNOWN


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    if not console.is_terminal:
        for finding in findings:
            title = f"{_MARGIN}{finding.verdict:8}{_harmless(finding.title):{_TITLE_WIDTH}} "
            text = f"\n{'':{len(title)}}".join(_lines(_harmless(finding.summary), _WIDTH - len(title)))
            console.print(Text(f"{title}{text}"), soft_wrap=True)
        return
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(width=len(_MARGIN))
    table.add_column(width=1)
    table.add_column(min_width=_TITLE_WIDTH, no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        sign, style = _SIGNS[finding.verdict]
        summary = Text(_harmless(finding.summary), "dim" if finding.verdict is Verdict.INFO else "")
        table.add_row("", Text(sign, style), Text(_harmless(finding.title)), summary)
    console.print(table)


def _closing(report: Report) -> Iterator[Text]:
    yield from _advice(report)
    yield from _settings(report)
    yield Text()
    yield _result(report)


def _advice(report: Report) -> Iterator[Text]:
    snippets = report.snippets
    for snippet, lines in snippets:
        yield Text()
        yield Text.assemble((f"What helps in {NAMES[snippet.proxy]}", "bold"), f" ({snippet.where})")
        yield Text(textwrap.indent("\n".join(lines), _MARGIN * 2), "cyan", no_wrap=True)
    if report.problems and not report.proxies:
        yield Text()
        yield Text(
            "Which proxy is in front is not known: --advice nginx,haproxy,… prints what to write for one that you name."
        )
    elif report.unadvised:
        yield Text()
        names = ", ".join(NAMES[proxy] for proxy in report.proxies)
        yield Text(f"No advice for: {', '.join(report.unadvised)} (in {names}).")


def _settings(report: Report) -> Iterator[Text]:
    settings, words = report.settings, remarks(timers_of(report.outcome.findings))
    needed = [setting for setting in settings if setting.is_needed]
    if settings:
        yield Text()
    if needed:
        yield Text("What helps in the configuration of Tricast", "bold")
        for section in dict.fromkeys(setting.section for setting in needed):
            yield Text(f"{_MARGIN * 2}[{section}]", "cyan")
            for setting in (each for each in needed if each.section == section):
                line = f'{setting.key} = "{setting.value}"'
                yield Text.assemble((f"{_MARGIN * 2}{line:28}", "cyan"), (f"# {setting.why}", "dim"), no_wrap=True)
    fine = [f"{each.section}.{each.key} = {each.default}" for each in settings if not each.is_needed]
    if fine:
        yield Text(f"These defaults of Tricast suit the timers: {', '.join(fine)}.")
    for remark in words:
        yield Text(remark)


def _result(report: Report) -> Text:
    findings, style = report.outcome.findings, {0: "green", 1: "yellow"}.get(report.exit_code, "bold red")
    words = []
    if report.outcome.was_interrupted:
        words.append("Interrupted: this is what was known by then.")
    if report.failed:
        words.append(f"Not wanted, but so: {', '.join(report.failed)}.")
    if report.unknown:
        words.append(f"Not known: {', '.join(report.unknown)}.")
    words += [
        f"{label}: {', '.join(names)}."
        for verdict, label in ((Verdict.BROKEN, "Broken"), (Verdict.ADVICE, "To improve"))
        if (names := _titles(findings, verdict))
    ]
    if not _titles(findings, Verdict.BROKEN) and not _titles(findings, Verdict.ADVICE):
        words.append("Nothing wrong was found." if findings else "Nothing was found out.")
        if unknown := _titles(findings, Verdict.UNKNOWN):
            words.append(f"Not found out: {', '.join(unknown)}.")
        if findings and (missing := list(_not_looked_at(report.outcome))):
            words.append(f"Not looked at: {', '.join(missing)}.")
    return Text(" ".join(words), style)


def _not_looked_at(outcome: Outcome) -> Iterator[str]:
    plan = outcome.plan
    if not plan.seconds:
        yield "timers (--quick)"
    if not outcome.is_companion:
        why = "no probe endpoints" if plan.token else "no token"
        has_timers = not plan.seconds or any(f.detail.get("transport") in TRANSPORTS for f in outcome.findings)
        yield f"{'' if has_timers else 'timers, '}holding back, fields and retries ({why})"
    if left_out := [transport for transport in TRANSPORTS if transport not in plan.transports]:
        yield f"{' and '.join(left_out)} (--transport)"


def _titles(findings: Iterable[Finding], *verdicts: Verdict) -> list[str]:
    return list(dict.fromkeys(finding.title for finding in findings if finding.verdict in verdicts))


def _harmless(text: str) -> str:
    """What a server says cannot control the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
