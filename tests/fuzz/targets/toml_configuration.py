"""Invariant: a file is a configuration, or every problem in it is told at once, each with its place, and none tells a
secret; what is a configuration is the same one again when its values are written out and read.
"""

import os
from functools import cache
from pathlib import Path

from tricast.config import Config, load_config
from tricast.errors import ConfigError

#: Of a kind that is refused, so that there is a message, which must not hold it.
_SECRET = "not-for-anybody\x7f"
#: What inputs are made of: every section, and every key.
DICTIONARY = (
    *(f"[{name}]\n".encode() for name in Config.model_fields),
    *(f"{key} = ".encode() for section in Config() for key in type(section[1]).model_fields),
    *(b'"1s"', b'"1MiB"', b"[[websocket.handler]]\n", b'path = "/a"\n', b"inf", b"nan", b"1e400", b"0x"),
    *(b'"\\u0000"', b"[[[[[[[[[[[[", b"{a={a={a={a=", b"1979-05-27T07:32:00Z", b"\xff", b"\r"),
    *(b'"9999999999999999999999d"', b'"""', b"'"),
    b'[probe]\ntoken = "not-for-anybody\\u007f"\n',
)


def check(data: bytes) -> None:
    """The input is the file."""
    path = _file()
    path.write_bytes(data)
    try:
        config = load_config(path)
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.source == str(path)
            assert problem.message
            assert _SECRET not in problem.message
        return
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert not config.probe.token or config.probe.token not in repr(config)


@cache
def _file() -> Path:
    """A file that is only in memory, and gone with the process however that ends."""
    return Path(f"/proc/self/fd/{os.memfd_create('tricast-fuzz')}")
