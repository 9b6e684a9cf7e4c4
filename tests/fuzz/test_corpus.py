"""Every invariant holds for every seed: what is worth beginning with, and what once broke it."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from fuzz.run import HERE, TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = {name: sorted((HERE / "corpus" / name).iterdir()) for name in TARGETS}
CUTS = st.integers(0, 200)
FILES = [path for seeds in SEEDS.values() for path in seeds]


def module_of(target: str) -> ModuleType:
    return importlib.import_module(f"fuzz.targets.{target}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_invariant_holds(path: Path) -> None:
    module_of(path.parent.name).check(path.read_bytes())


@st.composite
def mutations(draw: st.DrawFn, target: str) -> bytes:
    """What two seeds, words of the target and noise make together."""
    seeds = st.sampled_from(SEEDS[target]).map(Path.read_bytes)
    parts = st.one_of(
        st.builds(lambda seed, cuts: seed[min(cuts) : max(cuts)], seeds, st.tuples(CUTS, CUTS)),
        st.sampled_from(module_of(target).DICTIONARY),
        st.binary(max_size=8),
    )
    return b"".join([draw(seeds)[: draw(CUTS)], *draw(st.lists(parts, max_size=4))])


@pytest.mark.parametrize("target", TARGETS)
def test_the_invariant_holds_for_whatever_is_made_of_them(target: str) -> None:
    check = module_of(target).check

    @settings(max_examples=40)
    @given(mutations(target))
    def holds(data: bytes) -> None:
        check(data)

    holds()


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_begins_with_its_invariant(target: str) -> None:
    module = module_of(target)
    assert module.__doc__ is not None
    assert module.__doc__.startswith("Invariant: ")
    assert all(isinstance(word, bytes) and word for word in module.DICTIONARY)
    assert len(SEEDS[target]) >= 10
    module.check(b"")


def test_every_seed_has_a_target() -> None:
    assert {path.name for path in (HERE / "corpus").iterdir()} == set(TARGETS)
