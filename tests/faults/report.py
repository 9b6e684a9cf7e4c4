"""What was found, for a person to read: what was broken, the faults so far, and what happened around it."""

from collections import Counter
from collections.abc import Sequence

from faults.checker import told_of
from faults.history import Follower, Journal, Violation, written
from faults.plan import Fault

#: Violations of one rule that are told in full; one bug breaks a rule for hundreds.
_TOLD = 3
#: Items of a subscriber that are told before and behind the point.
_BEFORE = 12
_BEHIND = 6


def tell(violations: Sequence[Violation], faults: Sequence[Fault], *, seed: int) -> str:
    """The first violations of each rule, with the history around them."""
    counts = Counter(violation.rule for violation in violations)
    lines = [f"{len(violations)} violations with seed {seed}: {dict(counts)}", "", "the faults:", *map(str, faults)]
    told: Counter[str] = Counter()
    for violation in violations:
        told[violation.rule] += 1
        if told[violation.rule] <= _TOLD:
            lines += ["", f"{violation.rule.upper()}: {violation.text}"]
            if violation.follower is not None:
                index = len(violation.follower.items) if violation.item is None else violation.item
                lines += _around(violation.follower, index)
    return "\n".join(lines)


def _around(follower: Follower, index: int) -> list[str]:
    """What a subscriber was given around an item, with the notes of when and where."""
    lines = [f"  it happened to {follower.name}, which follows {' '.join(follower.topics)} and was given"]
    begin = max(index - _BEFORE, 0)
    connections = [at for at in range(begin) if follower.items[at] < 0]
    if connections:
        lines += [f"     {_item(follower, follower.items[connections[-1]])}", "     …"]
    for number in range(begin, min(index + _BEHIND, len(follower.items))):
        mark = "->" if number == index else "  "
        lines.append(f"  {mark} {_item(follower, follower.items[number])}")
    if index >= len(follower.items):
        lines.append("  -> and no more")
    return lines


def _item(follower: Follower, item: int) -> str:
    if item < 0:
        note = follower.notes[-1 - item]
        return f"{note.at:8.2f} s  {note.text}"
    journal: Journal = follower.journal
    entry = journal.entries[item]
    shard = f" in shard {entry.shard}" if entry.shard else ""
    return f"    {written(entry.id)}{shard}  {told_of(journal.publications[entry.name])}"
