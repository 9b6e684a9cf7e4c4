"""``config/public.toml`` is for a public address, so no limit may be off in it."""

import re
from pathlib import Path

import pytest

from tricast import Config, load_config

FILE = Path(__file__).parents[2] / "config" / "public.toml"
SECTIONS = ("limits", "publish", "websocket")


@pytest.mark.parametrize("section", SECTIONS)
def test_no_limit_is_off(section: str) -> None:
    default, public = (getattr(config, section) for config in (Config(), load_config(FILE)))
    off = {name for name, value in default if value == 0 and not isinstance(value, bool)}
    # What the kernel keeps for a client is bounded by limits.send_ahead.
    assert {name for name in off if getattr(public, name) == 0} <= {"send_buffer"}


def test_the_metrics_are_not_for_everybody() -> None:
    config = load_config(FILE)
    assert (config.admin.enabled, config.admin.host, config.server.page) == (True, "127.0.0.1", False)


def test_what_is_commented_out_can_be_filled_in(tmp_path: Path) -> None:
    shown = re.sub(r"(?m)^#(\[|[a-z_]+ = )", r"\1", FILE.read_text())
    file = tmp_path / "server.toml"
    file.write_text(shown)
    config = load_config(file)
    assert config.tls.certificate
    assert config.auth.is_on
