"""Fuzzes one target in this process: one.py FILE [ARGUMENT OF LIBFUZZER]…"""

import runpy
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["tricast", "h11", "wsproto", "jwt", "tomllib"]):
    target = runpy.run_path(sys.argv[1])


def _entry(word: bytes) -> str:
    """A word as libFuzzer reads it."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


with tempfile.NamedTemporaryFile("w", suffix=".dict") as words:
    words.write("\n".join(map(_entry, target["DICTIONARY"])))
    words.flush()
    atheris.Setup([sys.argv[0], *sys.argv[2:], f"-dict={words.name}"], target["check"])
    atheris.Fuzz()
