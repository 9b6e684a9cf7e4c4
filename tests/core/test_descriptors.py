"""Descriptor limits, in processes of their own: they can be lowered, and not raised again."""

import errno
import os
import resource
import subprocess
import sys

import pytest
from serving import open_descriptors

from tricast.descriptors import Spare, room_for_connections


def in_a_process(code: str) -> str:
    program = f"import resource\nfrom tricast.descriptors import *\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    lower = "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))"
    assert in_a_process(f"{lower}\nprint(raise_soft_limit(), raise_soft_limit())") == "(100, 200) (200, 200)"


def test_a_limit_that_may_not_be_raised_is_left() -> None:
    refuse = (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))\n"
        "def refuse(*_): raise ValueError('not allowed')\n"
        "resource.setrlimit = refuse"
    )
    assert in_a_process(f"{refuse}\nprint(raise_soft_limit())") == "(100, 100)"


def test_room_is_what_the_limit_leaves() -> None:
    lower = "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))"
    code = f"{lower}\nbefore = open_now()\nprint(room_for_connections(10) == 90 - before, room_for_connections(99))"
    assert in_a_process(code) == "True 1"


def test_no_limit_is_much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert room_for_connections(10) > 10**6


def test_the_spare_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def held() -> int:
        return open_descriptors()[os.devnull]

    before = held()
    spare = Spare()
    assert held() == before + 1
    assert spare.keep()
    spare.give_up()
    spare.give_up()
    assert held() == before

    def exhausted(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exhausted)
        assert not spare.keep()
    assert spare.keep()
    spare.give_up()


def test_both_packages_are_installed() -> None:
    import tricast_proxy

    assert tricast_proxy.__doc__
