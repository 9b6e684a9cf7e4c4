"""The servers that are programs of this folder, in C, Go and Python; all speak the requests of `peers.base.Running`."""

import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from peers.base import (
    PROGRAMS,
    Capability,
    Missing,
    Peer,
    Running,
    built,
    checked,
    launched,
    python_packages_version,
    this_python,
)

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


class Own(Peer):
    """A program of ours, which says where it listens: for subscribers, then for publishers where that differs."""

    def __init__(self, name: str, about: str, program: str, *capabilities: Capability) -> None:
        """Args: see `Peer`; the program is a path in ``programs/``."""
        self.name = name
        self.about = about
        self.capabilities = frozenset(capabilities)
        self._program = PROGRAMS / program
        self._command: list[str | Path] = []

    @contextmanager
    def run(self, folder: Path, *, options: Mapping[str, str]) -> Iterator[Running]:
        """The program, which has no options."""
        del options
        with launched(self._command, folder) as (pid, ports):
            yield self._running(pid, ports)

    def _running(self, pid: int, ports: list[int]) -> Running:
        return Running(pid, ports[0], publish_port=ports[-1])


class CProgram(Own):
    """One file of C."""

    def make_ready(self, build: Path) -> None:
        """Compiles it."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise Missing("there is no C compiler here: apt-get install gcc")
        flags = ["-O2", "-std=c11", "-Wall", "-Wextra"]
        made: list[bytes | str] = [checked([compiler, "--version"]), *flags, self._program.read_bytes()]

        def make(folder: Path) -> None:
            checked([compiler, *flags, "-o", folder / "server", self._program])

        folder = built(build, self._program.stem, made, make)
        self._command = [folder / "server"]

    def version(self) -> str:
        """The compiler's."""
        return checked(["cc", "--version"]).splitlines()[0]


class GoProgram(Own):
    """A package of a Go module."""

    def __init__(self, name: str, about: str, program: str, module: str, *capabilities: Capability) -> None:
        """Args: see `Own`; the module whose version is named, or nothing for Go's own library."""
        super().__init__(name, about, program, *capabilities)
        self._module = module

    def make_ready(self, build: Path) -> None:
        """Builds it, with what go.mod and go.sum pin."""
        if shutil.which("go") is None:
            raise Missing("Go is not here: install it, then run this again")
        root = self._root()
        sources = sorted([*root.glob("go.*"), *root.rglob("*.go")])
        made: list[bytes | str] = [checked(["go", "version"]), *(source.read_bytes() for source in sources)]

        def make(folder: Path) -> None:
            checked(["go", "build", "-buildvcs=false", "-o", folder / "server", self._program], folder=root)

        self._command = [built(build, f"go-{self._program.name}", made, make) / "server", *self._arguments()]

    def version(self) -> str:
        """The module's, and Go's."""
        root = self._root()
        own = [] if not self._module else [checked(["go", "list", "-m", self._module], folder=root).strip()]
        return ", ".join([*own, checked(["go", "env", "GOVERSION"]).strip()])

    def _root(self) -> Path:
        return self._program if (self._program / "go.mod").exists() else self._program.parent

    def _arguments(self) -> list[str]:
        return []


class PythonProgram(Own):
    """A Python program with an environment of its own, shared by those of this kind."""

    def __init__(self, name: str, about: str, program: str, packages: str, *capabilities: Capability) -> None:
        """Args: see `Own`; the packages whose versions are named."""
        super().__init__(name, about, program, *capabilities)
        self._packages = packages.split()

    def make_ready(self, build: Path) -> None:
        """Installs what requirements.txt pins."""

        def make(folder: Path) -> None:
            checked([sys.executable, "-m", "venv", folder])
            pip: list[str | Path] = [
                folder / "bin" / "python",
                "-m",
                "pip",
                "--disable-pip-version-check",
                "--no-input",
            ]
            checked([*pip, "install", "--quiet", "--require-hashes", "--requirement", REQUIREMENTS])

        made: list[bytes | str] = [sys.version, REQUIREMENTS.read_bytes()]
        self._command = [built(build, "python", made, make) / "bin" / "python", self._program]

    def version(self) -> str:
        """Those of its packages, and Python's."""
        versions = python_packages_version(Path(self._command[0]), *self._packages)
        return f"{versions}, Python {platform.python_version()}"


class Prototype(Own):
    """The prototype, on what the project's own environment has."""

    def make_ready(self, build: Path) -> None:
        """Nothing is missing where Tricast is."""
        del build
        self._command = [this_python(), self._program]

    def version(self) -> str:
        """Those of what it stands on."""
        return python_packages_version(this_python(), "trio", "h11", "wsproto")
