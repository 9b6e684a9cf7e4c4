"""Whether a run reaches what Tricast has to reach: ratios within the run, so that the machine matters little."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from figures import Spread, divide, spread
from results import FLOOR, PROTOTYPE, REFERENCES, TRICAST, Results

NCHAN = "Nchan"
KIB = 1024
#: What the accept costs may be: on the machine where the prototype takes 110 and 200 µs, 160 and 260.
_ACCEPT = {"sse": 160 / 110, "websocket": 260 / 200}
_RESIDENT = {"sse": 6 * KIB, "websocket": 8 * KIB}
_TITLES = {"sse": "SSE", "websocket": "WebSocket"}


class Verdict(NamedTuple):
    """One row of the table.

    Attributes:
        what: what was to be reached.
        target: how much.
        found: what there is, as text.
        is_reached: None where the run does not say.
    """

    what: str
    target: str
    found: str
    is_reached: bool | None

    def __str__(self) -> str:
        word = {True: "REACHED", False: "FALLS SHORT", None: "NOT MEASURED"}[self.is_reached]
        return f"{word:<13} {self.what}: {self.target}; found {self.found}"


def judge(results: Results, held: Mapping[str, float] | None = None) -> list[Verdict]:
    """Returns all rows. ``held`` are the figures of scripts/bench/hundred-thousand, where there are any."""
    verdicts = []
    for transport in ("sse", "websocket"):
        verdicts.append(_against_floor(results, transport))
        if transport == "sse":
            verdicts.append(_against_nchan(results))
    verdicts += [_saturation(results, transport) for transport in ("sse", "websocket")]
    for transport in ("sse", "websocket"):
        verdicts += [_resident(results, transport), _resident_beside_peers(results, transport)]
    verdicts += [_accept(results, transport) for transport in ("sse", "websocket")]
    verdicts += [_idle_cpu(results, transport) for transport in ("sse", "websocket")]
    verdicts.append(_tls(results))
    return verdicts + _hundred_thousand(held or {})


def count_shortfalls(verdicts: Sequence[Verdict]) -> int:
    """Returns how many rows were measured and are not reached."""
    return sum(one.is_reached is False for one in verdicts)


def _against_floor(results: Results, transport: str) -> Verdict:
    what = f"CPU per delivery over {_TITLES[transport]}"
    return _at_most(what, f"1.25 x the {FLOOR}", _ratio(results, "fan-out", transport, "cpu_us", FLOOR), 1.25, "x")


def _against_nchan(results: Results) -> Verdict:
    ratio = _ratio(results, "fan-out", "sse", "cpu_us", NCHAN)
    return _at_most("CPU per delivery over SSE", f"not above {NCHAN}", ratio, 1.0, "x")


def _saturation(results: Results, transport: str) -> Verdict:
    """The best peer is the one with the highest median, the floor and the prototype not counted."""
    what = f"deliveries per CPU second at saturation over {_TITLES[transport]}"
    best = _extreme_peer(results, "saturation", transport, "per_cpu_second", max)
    target = f"5 x the best peer{f' ({best})' if best else ''}"
    ratio = _ratio(results, "saturation", transport, "per_cpu_second", best)
    if ratio is None:
        return Verdict(what, target, "nothing", None)
    return Verdict(what, target, _show(ratio, "x"), ratio.median >= 5)


def _resident(results: Results, transport: str) -> Verdict:
    found = spread(results.pick("connections", transport, TRICAST, "rss_bytes").values())
    limit = _RESIDENT[transport]
    what = f"resident memory per idle {_TITLES[transport]} connection"
    return _at_most(what, f"{limit // KIB} KiB ({limit:,} bytes)", found, limit, " bytes")


def _resident_beside_peers(results: Results, transport: str) -> Verdict:
    what = f"resident memory per idle {_TITLES[transport]} connection"
    best = _extreme_peer(results, "connections", transport, "rss_bytes", min)
    target = f"below every peer{f' ({best} has the least)' if best else ''}"
    ratio = _ratio(results, "connections", transport, "rss_bytes", best)
    if ratio is None:
        return Verdict(what, target, "nothing", None)
    return Verdict(what, target, _show(ratio, "x"), ratio.median < 1)


def _accept(results: Results, transport: str) -> Verdict:
    ratio = _ratio(results, "connections", transport, "accept_cpu_us", PROTOTYPE)
    limit = _ACCEPT[transport]
    what = f"CPU to accept over {_TITLES[transport]}"
    return _at_most(what, f"{limit:.2f} x the {PROTOTYPE}", ratio, limit, "x")


def _idle_cpu(results: Results, transport: str) -> Verdict:
    count = results.sizes.get("idle-cpu", {}).get("connections", 0)
    found = spread(results.pick("idle-cpu", transport, TRICAST, "cpu_percent").values())
    what = f"idle CPU at {count:,.0f} {_TITLES[transport]} connections"
    if count != 15000:  # fewer cost less: the limit goes with them
        what += " (the limit is for 15,000)"
    limit = 8 * count / 15000
    return _at_most(what, f"{limit:.2g} % of a core", found, limit, " %")


def _tls(results: Results) -> Verdict:
    found = spread(results.pick("tls", "sse", TRICAST, "ratio").values())
    return _at_most("CPU per delivery over TLS", "2 x plain", found, 2, "x")


def _hundred_thousand(held: Mapping[str, float]) -> list[Verdict]:
    what = "100,000 mixed connections"
    targets = ("held for 5 minutes, nothing lost", "1.2 GB in all processes")
    if not held:
        return [Verdict(what, target, "nothing", None) for target in targets]
    is_whole = held["connections"] >= 100_000 and held["seconds"] >= 300
    size = f"{held['connections']:,.0f} connections for {held['seconds']:.0f} s"
    nothing_lost = held["lost"] == held["dropped"] == 0
    lost = f"{size}, {held['lost']:.0f} events lost, {held['dropped']:.0f} connections dropped"
    memory = f"{held['rss_bytes'] / 1e9:.2f} GB resident with {size}"
    fits = held["rss_bytes"] <= 1.2e9
    return [
        Verdict(what, targets[0], lost, nothing_lost if is_whole or not nothing_lost else None),
        Verdict(what, targets[1], memory, fits if is_whole or not fits else None),
    ]


def _extreme_peer(
    results: Results,
    scenario: str,
    transport: str,
    key: str,
    choose: Callable[[Sequence[tuple[float, str]]], tuple[float, str]],
) -> str:
    found = []
    for peer in results.peers:
        if peer.name.startswith(TRICAST) or peer.name in REFERENCES:
            continue
        if (values := spread(results.pick(scenario, transport, peer.name, key).values())) is not None:
            found.append((values.median, peer.name))
    return choose(found)[1] if found else ""


def _ratio(results: Results, scenario: str, transport: str, key: str, other: str) -> Spread | None:
    mine, theirs = (results.pick(scenario, transport, name, key) for name in (TRICAST, other))
    return divide(mine, theirs)


def _at_most(what: str, target: str, found: Spread | None, limit: float, unit: str) -> Verdict:
    if found is None:
        return Verdict(what, f"at most {target}", "nothing", None)
    return Verdict(what, f"at most {target}", _show(found, unit), found.median <= limit)


def _show(found: Spread, unit: str) -> str:
    digits = 0 if found.median >= 100 else 2
    text = f"{found.median:,.{digits}f}{unit}"
    return text if found.repetitions == 1 else f"{text} ({found.low:,.{digits}f} to {found.high:,.{digits}f})"
