"""Fuzzes one target in this process: one.py FILE [ARGUMENT OF LIBFUZZER]…"""

import os
import runpy
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["tricast", "h11", "wsproto", "jwt", "tomllib"]):
    target = runpy.run_path(sys.argv[1])


def _entry(word: bytes) -> str:
    """A word as libFuzzer reads it."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


# libFuzzer ends the process at once, so that nothing would remove a file.
words = os.memfd_create("dictionary")
with open(words, "w", closefd=False) as file:
    file.write("\n".join(map(_entry, target["DICTIONARY"])))
atheris.Setup([sys.argv[0], *sys.argv[2:], f"-dict=/proc/self/fd/{words}"], target["check"])
atheris.Fuzz()
