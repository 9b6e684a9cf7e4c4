"""The proxy's README speaks of profiles and keys that there are, and its table says what they say."""

import re
import tomllib
from pathlib import Path

from tricast.schema import model_of
from tricast_proxy.config import OFF, ProxyConfig, load_proxy_config
from tricast_proxy.listing import list_of_profiles
from tricast_proxy.profiles import MARKS, Profile, load_profile, profile_names
from tricast_proxy.program import load_stages, overrides_of

README = (Path(__file__).parents[2] / "proxy" / "README.md").read_text()
HEADER = (
    "| profile | what it is | Upgrade | tunnel idle | to the head | between bytes | in all | events |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


class Row:
    """What the table says of one profile, each number with the mark that it has there."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.config = load_proxy_config(overrides={"proxy": {"profile": profile.name}})

    def marked(self, text: str, dotted: str) -> str:
        known = self.profile.keys.get(dotted)
        return text if known is None else f"{text} ({known.mark})"

    def timer(self, dotted: str) -> str:
        section, _, key = dotted.partition(".")
        seconds: float = getattr(getattr(self.config, section), key)
        written = f"{seconds:g} s" if seconds < 3600 else f"{seconds / 3600:g} h"
        return "" if seconds == OFF else self.marked(written, dotted)

    def tunnel(self) -> str:
        tunnel = self.config.tunnel
        idle = self.timer("tunnel.idle_timeout")
        if tunnel.upgrade in ("strip", "deny"):
            return ""
        if tunnel.on_idle.startswith("silent"):
            return f"{idle}, {self.marked(tunnel.on_idle, 'tunnel.on_idle')}"
        return idle

    def head(self) -> str:
        status = self.marked(str(self.config.errors.header_timeout), "errors.header_timeout")
        waited = self.timer("upstream.response_header_timeout")
        return f"{waited}, then {status}" if waited else ""

    def in_all(self) -> str:
        longest = [
            (self.timer("upstream.response_timeout"), "answer"),
            (self.timer("tunnel.max_lifetime"), "tunnel"),
        ]
        return ", ".join(f"{what} {timer}" for timer, what in longest if timer)

    def events(self) -> str:
        response = self.config.response
        if response.cache != "off":
            return self.marked("shared by all clients", "response.cache")
        if response.event_stream == "unbuffered" and response.buffering != "full":
            return self.marked("at once", "response.event_stream")
        if response.cork:
            return self.marked(f"{response.cork * 1000:.0f} ms late", "response.cork")
        if response.buffering == "nginx":
            is_held = self.config.upstream.http_version == "1.0"
            return self.marked("held to the end" if is_held else "at once, in chunks", "response.buffering")
        if response.buffering == "off":
            return self.marked("at once", "response.buffering")
        how = "held to the end" if response.buffering == "full" else "held until there are enough"
        return self.marked(how, "response.buffering")

    def __str__(self) -> str:
        between = self.timer("upstream.read_timeout") or self.timer("upstream.stream_idle_timeout")
        cells = (
            f"`{self.profile.name}`",
            self.profile.description,
            self.marked(self.config.tunnel.upgrade, "tunnel.upgrade"),
            *(cell or "—" for cell in (self.tunnel(), self.head(), between, self.in_all())),
            self.events(),
        )
        return f"| {' | '.join(cells)} |"


def test_the_table_says_what_the_profiles_say() -> None:
    table = "\n".join((*HEADER, *(str(Row(load_profile(name))) for name in profile_names())))
    assert table in README, f"it should be:\n{table}"


def test_the_faults_of_which_it_speaks_are_the_same_in_a_file_and_on_the_command_line() -> None:
    (table,) = re.findall(r"```toml\n(\[\[fault\]\].*?)```", README, re.DOTALL)
    (command,) = re.findall(r"\$ tricast proxy (--fault .*)", README)
    written = load_proxy_config(overrides=tomllib.loads(table)).fault
    assert len(written) == 2
    assert (
        load_stages(None, overrides_of(faults=command.removeprefix("--fault ").split(" --fault ")))[0].fault == written
    )


def test_the_command_lists_what_the_table_says() -> None:
    listed = [re.split(" {2,}", line) for line in list_of_profiles().splitlines()[1:]]
    table = README.partition("\n".join(HEADER))[2].partition("\n\n")[0].strip()
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert len(listed) == len(profile_names())
    told = {row[0].strip("`"): [re.sub(r" \([A-Z?]\)", "", cell).replace("—", "-") for cell in row] for row in rows}
    for name, upgrade, idle, head, events, description in listed:
        assert [description, upgrade, idle, head, events] == [*told[name][1:5], told[name][7]]


def test_every_mark_is_explained() -> None:
    words = " ".join(README.split())
    for mark, meaning in MARKS.items():
        assert f"`{mark}` {meaning}" in words


SPOKEN = re.findall(r"`([a-z]+)\.([a-z_0-9]+)(?: = ([^`]+))?`", README)
SPOKEN += [("fault", key, value) for key, value in re.findall(r"`\[\[fault\]\] ([a-z_]+)(?: = ([^`]+))?`", README)]


def test_every_key_of_which_it_speaks_exists() -> None:
    assert len(SPOKEN) > 50
    for section, key, _ in SPOKEN:
        part = model_of(ProxyConfig.model_fields[section].annotation)
        assert part is not None
        assert key in part.model_fields, (section, key)


def test_every_value_of_which_it_speaks_can_be_given() -> None:
    examples = [(section, key, value) for section, key, value in SPOKEN if value]
    assert len(examples) > 5
    for section, key, value in examples:
        table = f"[[{section}]]" if section == "fault" else f"[{section}]"
        changed = ProxyConfig.model_validate(tomllib.loads(f"{table}\n{key} = {value}"))
        assert changed != ProxyConfig()
