"""Reading the configuration, and everything that can be wrong with it."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tricast.config import Config, load_config
from tricast.errors import ConfigError, ConfigProblem


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.upper().startswith("TRICAST_"):
            monkeypatch.delenv(name)


class Loader:
    """Loads what is written into a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "server.toml"

    def __call__(self, text: str | bytes = "", overrides: Mapping[str, Mapping[str, object]] | None = None) -> Config:
        self.file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(self.file, overrides=overrides)

    def problems(
        self, text: str | bytes = "", overrides: Mapping[str, Mapping[str, object]] | None = None
    ) -> list[str]:
        """The problems with a file, where FILE stands for its name."""
        with pytest.raises(ConfigError) as caught:
            self(text, overrides)
        assert str(caught.value) == "\n".join(map(str, caught.value.problems))
        return [str(problem).replace(str(self.file), "FILE") for problem in caught.value.problems]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


# What is right


def test_nothing_is_all_defaults(load: Loader) -> None:
    assert load() == load_config() == Config()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("10 s", 10.0),
    ],
)
def test_durations(load: Loader, text: str, seconds: float) -> None:
    assert load(f'[poll]\ntimeout = "{text}"').poll.timeout == pytest.approx(seconds)
    assert Config.model_validate({"poll": {"timeout": seconds}}).poll.timeout == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ('"100B"', 100),
        ('"1KB"', 1000),
        ('"1KiB"', 1024),
        ('"1.5MiB"', 1572864),
        ('"2MB"', 2_000_000),
        ('"1GiB"', 2**30),
        ('"1 GB"', 10**9),
        ("4096", 4096),
    ],
)
def test_sizes(load: Loader, text: str, size: int) -> None:
    assert load(f"[poll]\nmax_bytes = {text}").poll.max_bytes == size


def test_what_is_written_can_be_read_again() -> None:
    config = Config.model_validate({"poll": {"timeout": 90.0, "max_bytes": 1500}, "sse": {"retry": 0.125}})
    written = config.model_dump(mode="json")
    assert written["poll"] == {"timeout": "90s", "max_bytes": "1500B"}
    assert written["events"]["history_age"] == "1d"
    assert Config.model_validate(written) == config


@pytest.mark.parametrize(
    ("seconds", "text"), [(1234567.0, "1234567s"), (0.1, "0.1s"), (1e-7, "0.0000001s"), (25.123456789, "25.123456789s")]
)
def test_durations_are_written_exactly(seconds: float, text: str) -> None:
    config = Config.model_validate({"poll": {"timeout": seconds}})
    assert config.model_dump(mode="json")["poll"]["timeout"] == text
    assert Config.model_validate({"poll": {"timeout": text}}) == config


def test_nothing_is_written_in_the_smallest_unit() -> None:
    written = Config.model_validate({"drain": {"period": 0.0}, "limits": {"send_buffer": 0}}).model_dump(mode="json")
    assert (written["drain"]["period"], written["limits"]["send_buffer"]) == ("0s", "0B")


def test_handlers_and_lists(load: Loader) -> None:
    config = load(
        '[server]\ncors_origins = ["https://a.example"]\n'
        '[[websocket.handler]]\npath = "/echo"\nhandler = "tricast.handlers:echo"\n'
        '[[websocket.handler]]\npath = "/x"\nhandler = "my.app:_x"\n'
    )
    assert config.server.cors_origins == ("https://a.example",)
    assert [entry.path for entry in config.websocket.handler] == ["/echo", "/x"]


def test_a_configuration_does_not_change(load: Loader) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().server.port = 1


# Which one counts


def test_environment_over_file_over_defaults(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_POLL__TIMEOUT", "20s")
    monkeypatch.setenv("TRICAST_SERVER__PORT", "99")
    monkeypatch.setenv("tricast_server__host", "::1")
    config = load('[poll]\ntimeout = "10s"\nmax_bytes = "1B"')
    assert (config.poll.timeout, config.poll.max_bytes) == (20.0, 1)
    assert (config.server.host, config.server.port) == ("::1", 99)


def test_the_command_line_over_all(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_SERVER__PORT", "2")
    config = load('[server]\nport = 1\nhost = "::1"', {"server": {"port": 3}})
    assert (config.server.host, config.server.port) == ("::1", 3)


def test_lists_and_sections_in_the_environment(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_SERVER", '{"port": 5}')
    monkeypatch.setenv("TRICAST_SERVER__CORS_ORIGINS", '["https://a.example"]')
    monkeypatch.setenv("TRICAST_WEBSOCKET__HANDLER", '[{"path":"/a","handler":"a:b"}]')
    config = load('[server]\ncors_origins = ["*", "b"]')
    assert (config.server.port, config.server.cors_origins) == (5, ("https://a.example",))
    assert config.websocket.handler[0].path == "/a"


def test_variables_of_others_do_not_matter(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("OTHER_SERVER__PORT", "x")
    assert load() == Config()


@pytest.mark.parametrize("hosts", [("unix:/a", "unix:/b"), ("systemd:a", "systemd:b"), ("systemd:", "127.0.0.1")])
def test_listeners_without_ports(load: Loader, hosts: tuple[str, str]) -> None:
    server, admin = hosts
    text = f'[server]\nhost = "{server}"\nport = 9090\n[admin]\nenabled = true\nhost = "{admin}"\nport = 9090\n'
    assert load(text).server.host == server


# What is wrong


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nprot = 1", "FILE: server.prot: unknown key 'prot'; did you mean 'port'?"),
        ("[webscoket]\na = 1", "FILE: webscoket: unknown key 'webscoket'; did you mean 'websocket'?"),
        ("[poll]\nxyzzy = 1", "FILE: poll.xyzzy: unknown key 'xyzzy'; known are timeout, max_bytes"),
        ('[server]\nport = "x"', "FILE: server.port: expected a valid integer, unable to parse string as an integer"),
        ("[server]\nport = 70000", "FILE: server.port: expected less than or equal to 65535, found 70000"),
        ("[server]\nport = -1", "FILE: server.port: expected greater than or equal to 0, found -1"),
        ("[server]\nhost = 1", "FILE: server.host: expected a valid string, found 1"),
        ("server = 1", "FILE: server: expected a table"),
        ('[server]\ncors_origins = "*"', "FILE: server.cors_origins: expected a list, found '*'"),
        ('[server]\ncors_origins = ["*", 1]', "FILE: server.cors_origins.1: expected a valid string, found 1"),
        ("[poll]\ntimeout = 10", 'FILE: poll.timeout: expected a duration such as "30s" (a number and one of ms, s, '),
        ('[poll]\ntimeout = "10"', 'FILE: poll.timeout: expected a duration such as "30s"'),
        ('[poll]\ntimeout = "ten s"', 'FILE: poll.timeout: expected a duration such as "30s"'),
        ('[poll]\ntimeout = "10y"', "FILE: poll.timeout: expected a duration"),
        ('[poll]\ntimeout = "-10s"', "FILE: poll.timeout: expected a duration"),
        ('[poll]\ntimeout = "\u0661s"', "FILE: poll.timeout: expected a duration"),
        ('[poll]\ntimeout = "0s"', "FILE: poll.timeout: expected greater than 0, found '0s'"),
        ("[poll]\ntimeout = inf", "FILE: poll.timeout: expected a finite number, found inf"),
        ("[poll]\ntimeout = nan", "FILE: poll.timeout: expected"),
        ("[drain]\nperiod = -1.0", "FILE: drain.period: expected greater than or equal to 0, found -1.0"),
        ("[poll]\nmax_bytes = true", 'FILE: poll.max_bytes: expected a size such as "1MiB" (a number and one of B, KB'),
        ("[poll]\nmax_bytes = -1", "FILE: poll.max_bytes: expected a size"),
        ("[poll]\nmax_bytes = 1.5", "FILE: poll.max_bytes: expected a size"),
        ('[poll]\nmax_bytes = "1mib"', "FILE: poll.max_bytes: expected a size"),
        ('[poll]\nmax_bytes = "0B"', "FILE: poll.max_bytes: expected greater than 0, found '0B'"),
        ('[logging]\nlevel = "loud"', "FILE: logging.level: expected 'debug', 'info', 'warning' or 'error', found "),
        ('[log]\nurl = "file:"', 'FILE: log.url: expected "memory:", "sqlite:///path" (four slashes: from the root), '),
        ('[websocket]\nping_interval = "60s"', "FILE: websocket: expected a ping_timeout longer than ping_interval"),
        ('[[websocket.handler]]\npath = "/"', "FILE: websocket.handler.0.handler: Field required"),
        (
            '[[websocket.handler]]\npath = "/"\nhandler = "a:b"\nhandlr = 1',
            "FILE: websocket.handler.0.handlr: unknown key 'handlr'; did you mean 'handler'?",
        ),
        (
            '[[websocket.handler]]\npath = "x"\nhandler = "a:b"',
            "FILE: websocket.handler.0.path: expected to match pattern",
        ),
        ('[server]\nhost = "unix:"', 'FILE: server.host: expected a path of 1 to 107 bytes behind "unix:", found'),
        (f'[server]\nhost = "unix:/{"é" * 54}"', "FILE: server.host: expected a path of 1 to 107 bytes"),
        ("[server]\nunix_mode = 660", 'FILE: server.unix_mode: expected a mode such as "0660", found 660'),
        ('[server]\nunix_mode = "0668"', 'FILE: server.unix_mode: expected a mode such as "0660"'),
        (
            '[server]\ntrusted_proxies = ["10.0.0.0/33"]',
            'FILE: server.trusted_proxies.0: expected a network such as "10.0.0.0/8", or "unix", found',
        ),
        ('[server]\nforwarded = "both"', "FILE: server.forwarded: expected 'x-forwarded' or 'forwarded'"),
        (
            "[server]\nproxy_protocol = true",
            "FILE: server: expected trusted_proxies as well, where there is proxy_protocol",
        ),
        (
            '[server]\nhost = "unix:/a"\n[admin]\nenabled = true\nhost = "unix:/a"',
            "FILE: expected an admin.host other than server.host",
        ),
        (
            '[server]\nhost = "systemd:a"\n[admin]\nenabled = true\nhost = "systemd:a"',
            "FILE: expected an admin.host other than server.host",
        ),
        (
            '[server]\nhost = "systemd:"\n[admin]\nenabled = true\nhost = "systemd:a"',
            'FILE: expected the names of sockets behind both "systemd:"',
        ),
        ("x = ", "FILE: not TOML: Invalid value"),
        ("[poll]\n[poll]", "FILE: not TOML: Cannot declare"),
        (b"x = '\xff'", "FILE: not TOML: 'utf-8' codec"),
        ("x = " + "[" * 10_000, "FILE: lists and tables are too deep within one another"),
    ],
)
def test_one_problem(load: Loader, text: str | bytes, problem: str) -> None:
    (found,) = load.problems(text)
    assert found.startswith(problem)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.toml")
    assert str(caught.value) == f"{tmp_path / 'none.toml'}: No such file or directory"


def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(str(tmp_path))


def test_all_problems_at_once(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_SSE__RETRY", "soon")
    monkeypatch.setenv("TRICAST_POLL__TIMOUT", "1s")
    monkeypatch.setenv("TRICAST_SERVR__PORT", "1")
    monkeypatch.setenv("TRICAST_SERVER__CORS_ORIGINS", "https://a.example")
    monkeypatch.setenv("TRICAST_DRAIN", "{")
    found = load.problems(
        '[server]\nport = "x"\nprot = 1\n[nope]\n[sse]\nretry = "x"\n', {"server": {"host": 1}, "admin": {"prt": 1}}
    )
    assert [problem.partition(" expected")[0].partition(" unknown")[0] for problem in found] == [
        "command line: server.host:",
        "FILE: server.port:",
        "FILE: server.prot:",
        "environment: TRICAST_POLL__TIMOUT:",
        "environment: TRICAST_SSE__RETRY:",
        "command line: admin.prt:",
        "FILE: nope:",
        "environment: TRICAST_SERVR__PORT:",
        "environment: TRICAST_DRAIN:",
        "environment: TRICAST_SERVER__CORS_ORIGINS:",
    ]
    assert found[-1].endswith("expected JSON, found 'https://a.example'")


def test_without_a_file_the_problem_is_somewhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRICAST_SERVER__PROT", "1")
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert str(caught.value) == "environment: TRICAST_SERVER__PROT: unknown key 'prot'; did you mean 'port'?"


@pytest.mark.parametrize("name", ["TRICAST_SERVR__PORT", "TRICAST_SERVER__CORS_ORIGINS"])
def test_a_problem_of_the_environment_alone(load: Loader, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    (found,) = load.problems()
    assert found.startswith(f"environment: {name}: ")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        (
            "TRICAST_SERVER__CORS_ORIGINS",
            "[1]",
            "environment: TRICAST_SERVER__CORS_ORIGINS__0: expected a valid string",
        ),
        ("TRICAST_WEBSOCKET__HANDLER", '[{"path":"/"}]', "environment: TRICAST_WEBSOCKET__HANDLER__0__HANDLER: Field"),
        ("TRICAST_SERVER", "7", "environment: TRICAST_SERVER: expected a table"),
        ("TRICAST_SERVER__PORT__X", "7", "environment: TRICAST_SERVER__PORT: expected a valid integer"),
        ("TRICAST_SERVER", "[" * 100_000, "environment: TRICAST_SERVER: expected JSON"),
    ],
)
def test_one_variable(load: Loader, monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    monkeypatch.setenv(name, value)
    (found,) = load.problems('[server]\ncors_origins = ["https://x"]')
    assert found.startswith(problem)


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    name=st.sampled_from(["SERVER", "SERVER__PORT", "SERVER__CORS_ORIGINS", "SERVER__X", "WEBSOCKET__HANDLER", "X__Y"]),
    suffix=st.sampled_from(["", "", "__0", "__PATH", "__"]),
    value=st.sampled_from(["", "1", "[]", "{}", "[1", '["a"]', '{"port": {}}', "null", '"x"', "[{}]", "x"]),
)
def test_no_variable_ends_in_anything_but_an_answer(name: str, suffix: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(f"TRICAST_{name}{suffix}", value)
        problems: tuple[ConfigProblem, ...] = ()
        try:
            load_config()
        except ConfigError as error:
            problems = error.problems
    assert all((source, key.partition("_")[0]) == ("environment", "TRICAST") for source, key, _ in problems)


@pytest.mark.parametrize("origin", ["example.com", "https://a.b/", "https://a.b/path", "", "https://", "HTTPS://a b"])
def test_what_is_no_origin(load: Loader, origin: str) -> None:
    (found,) = load.problems(f'[server]\ncors_origins = ["{origin}"]')
    assert found.startswith("FILE: server.cors_origins.0: expected an origin such as")


def test_values_that_do_not_go_together(load: Loader) -> None:
    (found,) = load.problems('[publish]\nmax_event = "2MiB"')
    assert found == "FILE: publish: expected a max_body of at least max_event"
    (found,) = load.problems("[admin]\nenabled = true\nport = 8080")
    assert found == "FILE: expected an admin.port other than server.port"


def test_the_url_of_a_log_is_not_repeated(load: Loader) -> None:
    (found,) = load.problems('[log]\nurl = "redys://user:secret@host"')
    assert "secret" not in found


# Logs on servers

KAFKA = '[log]\nurl = "kafka://host/events"\n'
REDIS = '[log]\nurl = "redis://user:secret@host"\n'


@pytest.mark.parametrize(
    "text",
    [
        f'{REDIS}shards = 256\ndelivery = "pubsub"\nreplicas = 1\nnamespace = "a:b"',
        f'{REDIS}tls_certificate = "a"\ntls_key = "b"',
        f'{KAFKA}shards = 4\nlength = 1\nkafka = {{ "sasl.username" = "a" }}\n[[log.source]]\nkafka_topic = "a"',
        '[log]\nshards = 1\ndelivery = "stream"\nkafka = {}\nsource = []',
    ],
)
def test_logs_on_servers(load: Loader, text: str) -> None:
    load(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[log]\nshards = 2", "FILE: log: expected a log.url for redis or kafka, where there is log.shards"),
        ('[log]\ndelivery = "pubsub"', "FILE: log: expected a log.url for redis, where there is log.delivery"),
        (f"{KAFKA}replicas = 1", "FILE: log: expected a log.url for redis, where there is log.replicas"),
        (f'{REDIS}kafka = {{ a = "b" }}', "FILE: log: expected a log.url for kafka, where there is log.kafka"),
        (f'{REDIS}[[log.source]]\nkafka_topic = "a"', "FILE: log: expected a log.url for kafka, where there is log.so"),
        (f'{REDIS}tls_key = "a"', "FILE: log: expected a tls_certificate as well, where there is a tls_key"),
        ("[log]\nurl = 1", 'FILE: log.url: expected "memory:"'),
        (f"{REDIS}shards = 257", "FILE: log.shards: expected less than or equal to 256, found 257"),
        (f"{REDIS}length = 0", "FILE: log.length: expected greater than or equal to 1, found 0"),
        (f'{REDIS}delivery = "fast"', "FILE: log.delivery: expected 'stream' or 'pubsub', found 'fast'"),
        (f'{REDIS}namespace = "a{{b}}"', "FILE: log.namespace: expected 1 to 64 visible ASCII characters other than {"),
        (f'{REDIS}namespace = ""', "FILE: log.namespace: expected 1 to 64 visible"),
        (f'{REDIS}timeout = "0s"', "FILE: log.timeout: expected greater than 0"),
        (f"{KAFKA}kafka = {{ a = 1 }}", "FILE: log.kafka.a: expected a valid string"),
        (f"{KAFKA}[[log.source]]", "FILE: log.source.0.kafka_topic: Field required"),
        (f'{KAFKA}[[log.source]]\nkafka_topic = "a/b"', "FILE: log.source.0.kafka_topic: expected to match pattern"),
    ],
)
def test_what_is_wrong_with_logs_on_servers(load: Loader, text: str, problem: str) -> None:
    (found,) = load.problems(text)
    assert found.startswith(problem)
    assert "secret" not in found


@pytest.mark.parametrize("topic", ["a", "", "{key}.{key}", "a.*.{key}", "{key}.>", "a..{key}", "{key} "])
def test_what_is_no_topic_for_a_source(load: Loader, topic: str) -> None:
    (found,) = load.problems(f'{KAFKA}[[log.source]]\nkafka_topic = "a"\ntopic = "{topic}"')
    assert found.startswith('FILE: log.source.0.topic: expected a topic with {key} in it such as "orders.{key}"')


@pytest.mark.parametrize("type_", ["", "tricast.gap", "a\\nb"])
def test_what_is_no_type_for_a_source(load: Loader, type_: str) -> None:
    (found,) = load.problems(f'{KAFKA}[[log.source]]\nkafka_topic = "a"\ntype = "{type_}"')
    assert found.startswith("FILE: log.source.0.type: ")


def test_a_password_is_not_shown_with_the_configuration(load: Loader) -> None:
    config = load(REDIS)
    assert "secret" not in repr(config)
    config = load(f'{KAFKA}kafka = {{ "sasl.password" = "secret" }}')
    assert "secret" not in repr(config)


# The number of workers


@pytest.mark.parametrize(("text", "workers"), [("4", 4), ('"4"', 4), ('"auto"', "auto"), ("1024", 1024)])
def test_a_number_of_workers(load: Loader, text: str, workers: object) -> None:
    assert load(f"[server]\nworkers = {text}\n").server.workers == workers


@pytest.mark.parametrize("text", ["0", "-1", "1025", "1.5", "true", '"all"', '""', "[]"])
def test_no_number_of_workers(load: Loader, text: str) -> None:
    (problem,) = load.problems(f"[server]\nworkers = {text}\n")
    assert problem.startswith('FILE: server.workers: expected a number from 1 to 1024, or "auto", found ')


def test_what_is_dumped_is_loaded_again_as_it_was(load: Loader) -> None:
    """Workers get their configuration like that."""
    config = load('[events]\nhistory_age = "1234567s"\n[poll]\ntimeout = "25.123456789s"\n[server]\nworkers = 2\n')
    assert Config.model_validate(json.loads(json.dumps(config.model_dump()))) == config


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        '[auth]\nkey = "hunter2"',
        '[auth]\nkey = ["hunter2"]',
        '[auth.key]\nalgorithm = "HS256"\nsecret = "hunter2"',
        '[[auth.key]]\nalgorithm = "HS256"\nsecret = ["hunter2"]',
        '[[auth.key]]\nalgorithm = "RS256"\nsecret = "hunter2"',
        '[[auth.key]]\nalgorithm = "hunter2"\nsecret = "hunter2"',
        '[[auth.key]]\nalgorithm = "HS256"\nsecret = "hunter2"\nfile = "hunter2"',
        '[[auth.api_key]]\nname = "a"\nhash = "hunter2"',
        '[[auth.api_key]]\nname = "a"\nhash = ["hunter2"]',
        '[auth]\nticket_secret = "hunter2"',
        '[auth]\nticket_secret = ["hunter2"]',
        '[auth]\njwks_url = "https://u:hunter2@a.example/"',
        '[probe]\ntoken = "hunter2"',
        'auth = "hunter2"',
        'probe = "hunter2"',
    ],
)
def test_a_secret_is_in_no_problem(load: Loader, text: str) -> None:
    assert "hunter2" not in "".join(load.problems(text))


@pytest.mark.parametrize("name", ["AUTH", "AUTH__KEY", "AUTH__API_KEY", "PROBE", "AUTH__TICKET_SECRET"])
@pytest.mark.parametrize("value", ["hunter2", '"hunter2"', '["hunter2"]', '[{"secret": "hunter2"}]'])
def test_a_secret_of_the_environment_is_in_no_problem(
    load: Loader, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TRICAST_{name}", value)
    assert "hunter2" not in "".join(load.problems())


def test_a_secret_is_in_no_representation() -> None:
    secret = "hunter2" * 5
    key = {"algorithm": "HS256", "secret": secret}
    api_key = {"name": "a", "hash": "sha256:" + "ab" * 32}
    auth = {"key": [key], "api_key": [api_key], "ticket_secret": secret}
    config = Config.model_validate({"auth": auth, "probe": {"token": secret}})
    for part in (config, config.auth, config.auth.key, config.auth.api_key, config.probe):
        assert "hunter2" not in f"{part!r} {part}"
        assert "abab" not in f"{part!r} {part}"
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"auth": {"key": [{**key, "algorithm": "none"}], "ticket_secret": ["hunter2"]}})
    assert "hunter2" not in str(caught.value)


# Access


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[auth.key]]\nalgorithm = "none"\nsecret = "x"', "auth.key.0.algorithm: expected 'HS256', 'RS256', "),
        ('[[auth.key]]\nalgorithm = "HS256"', "auth.key.0: expected one of secret, public and file"),
        ('[[auth.key]]\nalgorithm = "HS256"\nsecret = "x"\nfile = "y"', "auth.key.0: expected one of secret, "),
        ('[[auth.key]]\nalgorithm = "ES256"\nsecret = "x"', "auth.key.0: expected public or file: only HS256 has "),
        ('[[auth.key]]\nalgorithm = "HS256"\npublic = "x"', "auth.key.0: expected secret or file: HS256 has no "),
        ('[[auth.api_key]]\nname = "a"\nhash = "md5:1"', 'auth.api_key.0.hash: expected "sha256:" and 64 hexa'),
        ('[[auth.api_key]]\nname = "a b"\nhash = ""', "auth.api_key.0.name: expected to match pattern"),
        ('[auth]\nanonymous_publish = ["a..b"]', 'auth.anonymous_publish.0: expected topic patterns such as "news.>"'),
        ('[auth]\nanonymous_subscribe = ["u.{sub}"]', "auth.anonymous_subscribe.0: expected topic patterns such as"),
        ('[auth]\nanonymous_subscribe = ["a.>.b"]', "auth.anonymous_subscribe.0: expected topic patterns such as"),
        (
            '[auth]\nissuer = ["a"]',
            "auth: expected a key, a jwks_url, an api_key or an anonymous rule as well: without,",
        ),
        ('[auth]\naudience = ["a"]', "auth: expected a key, a jwks_url, an api_key or an anonymous rule as well: "),
        ('[auth]\ncookie = "a"', "auth: expected a key, a jwks_url, an api_key or an anonymous rule as well: "),
        (
            "[auth]\ntoken_in_query = true",
            "auth: expected a key, a jwks_url, an api_key or an anonymous rule as well: ",
        ),
        ('[auth]\nticket_secret = "short"', "auth.ticket_secret: expected empty, or 32 bytes or more"),
        ('[auth]\njwks_url = "http://keys.example/"', "auth.jwks_url: expected an https URL without a password"),
        ('[auth]\njwks_url = "file:///etc/passwd"', "auth.jwks_url: expected an https URL without a password"),
        ('[auth]\njwks_url = "https://"', "auth.jwks_url: expected an https URL without a password"),
        ('[auth]\njwks_url = "https://a:99999"', "auth.jwks_url: expected an https URL without a password"),
        ('[auth]\njwks_url = "https://[::1"', "auth.jwks_url: expected an https URL without a password"),
        ('[auth]\njwks_url = "https://a b"', "auth.jwks_url: expected an https URL without a password"),
        ("[auth]\njwks_url = 1", "auth.jwks_url: expected an https URL without a password"),
    ],
)
def test_what_is_wrong_with_access(load: Loader, text: str, problem: str) -> None:
    found = load.problems(text)
    assert any(one.startswith(f"FILE: {problem}") for one in found), found


@pytest.mark.parametrize(
    "url", ["https://a.example/jwks?x=1", "http://127.0.0.1:80/", "http://[::1]/", "http://localhost/", ""]
)
def test_a_url_of_keys(load: Loader, url: str) -> None:
    assert load(f'[auth]\njwks_url = "{url}"').auth.jwks_url == url


@pytest.mark.parametrize(
    ("text", "is_on"),
    [
        ("", False),
        ('[auth]\nleeway = "1s"', False),
        ('[[auth.key]]\nalgorithm = "HS256"\nsecret = "x"', True),
        ('[[auth.api_key]]\nname = "a"\nhash = "sha256:' + "0" * 64 + '"', True),
        ('[auth]\njwks_url = "https://a.example"', True),
        ('[auth]\nanonymous_subscribe = [">"]', True),
        ('[auth]\nanonymous_publish = ["a"]', True),
    ],
)
def test_what_turns_access_on(load: Loader, text: str, is_on: bool) -> None:
    assert load(text).auth.is_on is is_on
