"""``tricast token``: what it makes, and what it says of what was made."""

import json
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jwt
import pytest
from access.making import SECRET, jwk_set, private_key, private_pem, public_pem, raw_token
from access.making import jwk as jwk_of
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import rsa

from tricast import cli
from tricast.access import api_keys
from tricast.access.command import token as token_command
from tricast.config import load_config

CONFIG = f"""
[auth]
issuer = ["https://issuer.example", "other"]
audience = ["tricast", "other"]
[[auth.key]]
algorithm = "HS256"
id = "main"
secret = "{SECRET}"
"""

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the command, with a configuration beside it: ``{config}`` in its arguments."""
    (tmp_path / "server.toml").write_text(CONFIG)

    def run(*args: str, stdin: str = "") -> Result:
        filled = [arg.format(config=tmp_path / "server.toml", folder=tmp_path) for arg in args]
        return CliRunner().invoke(cli.cli, ["token", *filled], input=stdin)

    return run


def failure_of(result: Result) -> str:
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert result.stdout == ""
    return result.stderr


def claims_of(text: str, key: Any = SECRET, algorithm: str = "HS256") -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(text.strip(), key, [algorithm], options={"verify_aud": False})
    return claims


def findings_of(result: Result) -> dict[str, tuple[str, str]]:
    """How each check ended, and what it says."""
    lines = [re.split(r" {2,}", line, maxsplit=2) for line in result.stdout.splitlines()]
    return {line[1]: (line[0], line[2] if len(line) > 2 else "") for line in lines}


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (command, option)
        for command in token_command.commands.values()
        for option in command.params
        if isinstance(option, click.Option)
    ],
    ids=lambda it: it.name,
)
def test_help_tells_every_default(command: click.Command, option: click.Option) -> None:
    context = click.Context(command, parent=click.Context(cli.cli, **cli.cli.context_settings), info_name=command.name)
    record = option.get_help_record(context)
    assert record is not None
    assert option.multiple or option.is_flag or "default: " in record[1]


# Making tokens


def test_a_token_made_with_the_configuration(run: Run) -> None:
    made = run(
        "make", "--config", "{config}", "--sub", "bob", "--subscribe", "a.>", "--subscribe", "b", "--publish", "c"
    )
    assert made.exit_code == 0
    claims = claims_of(made.stdout)
    assert claims.pop("exp") - claims.pop("iat") == 3600
    assert claims == {
        "sub": "bob",
        "iss": "https://issuer.example",
        "aud": "tricast",
        "subscribe": ["a.>", "b"],
        "publish": ["c"],
    }
    assert jwt.get_unverified_header(made.stdout.strip())["kid"] == "main"
    assert run("explain", "--config", "{config}", stdin=made.stdout).exit_code == 0


def test_a_token_made_with_every_option(run: Run) -> None:
    claims = claims_of(
        run(
            *("make", "--config", "{config}", "--expires", "never", "--audience", "x", "--issuer", "y"),
            *("--claim", "nbf=5", "--claim", "name=text", "--claim", 'roles=["a"]', "--claim", "e=a=b"),
        ).stdout
    )
    del claims["iat"]
    assert claims == {"aud": "x", "iss": "y", "nbf": 5, "name": "text", "roles": ["a"], "e": "a=b"}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_token_made_with_a_key_in_a_file(run: Run, tmp_path: Path, algorithm: str) -> None:
    key = private_key(algorithm)
    (tmp_path / "key.pem").write_text(private_pem(key))
    for given in ((), ("--algorithm", algorithm)):
        made = run("make", "--key", "{folder}/key.pem", *given, "--id", "k", "--sub", "bob")
        assert claims_of(made.stdout, key.public_key(), algorithm)["sub"] == "bob"
        assert jwt.get_unverified_header(made.stdout.strip())["kid"] == "k"
    # And with one that the configuration names.
    (tmp_path / "server.toml").write_text(f'[[auth.key]]\nalgorithm = "{algorithm}"\nfile = "{tmp_path}/key.pem"\n')
    made = run("make", "--config", "{config}", "--sub", "bob")
    assert "kid" not in jwt.get_unverified_header(made.stdout.strip())
    assert run("explain", "--config", "{config}", stdin=made.stdout).exit_code == 0


def test_a_token_made_with_a_secret_in_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    assert claims_of(run("make", "--key", "{folder}/secret").stdout)
    assert claims_of(run("make", "--key", "{folder}/secret", "--algorithm", "HS256").stdout)


def test_a_key_is_chosen_by_its_id(run: Run, tmp_path: Path) -> None:
    other = SECRET + " too"
    (tmp_path / "server.toml").write_text(
        f'{CONFIG}[[auth.key]]\nalgorithm = "ES256"\nid = "public"\npublic = """{public_pem(private_key("ES256"))}"""\n'
        f'[[auth.key]]\nalgorithm = "HS256"\nid = "other"\nsecret = "{other}"\n'
    )
    assert claims_of(run("make", "--config", "{config}").stdout)
    assert claims_of(run("make", "--config", "{config}", "--id", "other").stdout, other)
    said = failure_of(run("make", "--config", "{config}", "--id", "public"))
    assert "no secret and no private key with the id public to sign with" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("make",), "the configuration has no secret and no private key to sign with"),
        (("make", "--key", "{folder}/none"), "--key: {folder}/none: No such file or directory"),
        (("make", "--key", "{folder}/public"), "--key: there is no private key in PEM format without a password"),
        (("make", "--key", "{folder}/weak"), "--key: expected an RSA key of 2048 bits or more, an elliptic"),
        (("make", "--key", "{folder}/key", "--algorithm", "RS256"), "--key: expected an RSA key of 2048 bits or more"),
        (("make", "--key", "{folder}/short"), "--key: expected a secret of 32 bytes or more (RFC 7518 3.2), found 7"),
        (("make", "--config", "{folder}/none"), "{folder}/none: No such file or directory"),
        (("explain", "x"), "the configuration has no [auth]: without it, everybody may do everything"),
        (
            ("explain", "x", "--config", "{folder}/weak.toml"),
            "{folder}/weak.toml: auth.key.0.secret: expected a secret",
        ),
        (("key", "a b"), "String should match pattern"),
    ],
)
def test_what_does_not_work(run: Run, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    (tmp_path / "public").write_text(public_pem(private_key("ES256")))
    (tmp_path / "key").write_text(private_pem(private_key("ES256")))
    (tmp_path / "weak").write_text(private_pem(rsa.generate_private_key(65537, 1024)))
    (tmp_path / "short").write_text("hunter2")
    (tmp_path / "weak.toml").write_text('[[auth.key]]\nalgorithm = "HS256"\nsecret = "hunter2"\n')
    result = run(*args)
    assert result.exit_code == 1
    assert said.format(folder=tmp_path) in _said(result)
    assert "hunter2" not in _said(result)


def _said(result: Result) -> str:
    return result.stderr or str(result.exception)


@pytest.mark.parametrize(
    "args",
    [
        ("make", "--config", "{config}", "--subscribe", "a..b"),
        ("make", "--config", "{config}", "--publish", ""),
        ("make", "--config", "{config}", "--expires", "1"),
        ("make", "--config", "{config}", "--expires", "soon"),
        ("make", "--config", "{config}", "--claim", "x"),
        ("make", "--config", "{config}", "--claim", "=x"),
        ("make", "--config", "{config}", "--algorithm", "HS256"),
        ("make", "--config", "{config}", "--algorithm", "none"),
        ("explain", "x", "--config", "{config}", "--subscribe", "a b"),
        ("key",),
    ],
)
def test_wrong_usage(run: Run, args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2


# Explaining


def test_what_is_said_of_a_good_token(run: Run) -> None:
    made = run("make", "--config", "{config}", "--sub", "bob", "--subscribe", "users.{{sub}}.>").stdout.strip()
    for result in (
        run("explain", made, "--config", "{config}"),
        run("explain", "--config", "{config}", stdin=made + "\n"),
        run("explain", "-", "--config", "{config}", stdin=f"  {made}\n"),
    ):
        assert (result.exit_code, result.stderr) == (0, "")
        findings = findings_of(result)
        assert {outcome for outcome, _ in findings.values()} == {"ok"}
        assert findings["size"][1] == f"{len(made)} of 8192 bytes"
        assert findings["algorithm"][1] == "'HS256'"
        assert findings["signature"][1] == "kid 'main'; 1 key to try"
        assert re.fullmatch(r"20\d\d-.* s from now", findings["exp"][1])
        assert findings["nbf"][1] == "not given"
        assert (findings["sub"][1], findings["aud"][1]) == ("'bob'", "'tricast'")
        assert findings["subscribe"][1] == "'users.bob.>'"
        assert findings["publish"][1] == "nothing"


def test_everything_that_is_wrong_is_told(run: Run) -> None:
    bad = [
        *("make", "--config", "{config}", "--audience", "aud-x", "--issuer", "iss-x", "--claim", "exp=1"),
        *("--claim", "nbf=99999999999", "--sub", "a.b", "--subscribe", "x.{{sub}}", "--publish", "y"),
    ]
    result = run("explain", "--config", "{config}", stdin=run(*bad).stdout)
    assert (result.exit_code, result.stderr) == (1, "a server refuses this: token-expired\n")
    findings = findings_of(result)
    assert [name for name, (outcome, _) in findings.items() if outcome == "FAILED"] == ["exp", "nbf", "iss", "aud"]
    assert "found: 1970-01-01T00:00:01+00:00" in findings["exp"][1]
    assert "expected: 'https://issuer.example' or 'other'" in findings["iss"][1]
    assert "found: 'aud-x'; expected: 'tricast' or 'other'" in findings["aud"][1]
    assert "cover nothing: 1" in findings["{sub}"][1]


def test_a_token_whose_signature_is_wrong_is_read_on(run: Run) -> None:
    payload = json.dumps({"sub": "bob", "exp": time.time() + 60})
    forged = raw_token('{"alg":"HS256","kid":"main"}', payload, "another secret that is long enough")
    result = run("explain", forged, "--config", "{config}")
    findings = findings_of(result)
    assert (result.exit_code, findings["signature"][0], findings["sub"]) == (1, "FAILED", ("ok", "'bob'"))
    assert "token-signature" in result.stderr
    # Nothing is checked with an algorithm that is not known.
    findings = findings_of(run("explain", raw_token('{"alg":"none"}', "{}"), "--config", "{config}"))
    assert findings["algorithm"][0] == "FAILED"
    assert "accepted: HS256" in findings["algorithm"][1]
    assert findings["signature"] == ("-", "not checked")
    assert findings["exp"][0] == "FAILED"


@pytest.mark.parametrize(
    ("text", "code", "last"),
    [
        ("x" * 9000, "auth.max_token", "size"),
        ("nonsense", "token-malformed", "structure"),
        ("", "token-malformed", "structure"),
        (raw_token('{"alg":"HS256"}', '{"exp":'), "token-claims", "claims"),
        (raw_token('{"alg":"HS256"}', '{"exp":1e300}'), "token-claims", "publish"),
        ("tricast_nonsense", "api-key-unknown", "API key"),
    ],
)
def test_what_cannot_be_read(run: Run, text: str, code: str, last: str) -> None:
    result = run("explain", "--config", "{config}", "--publish", "a", stdin=text)
    assert (result.exit_code, result.stderr) == (1, f"a server refuses this: {code}\n")
    names = list(findings_of(result))
    assert names[-2:] == [last, "publish a"]
    assert SECRET not in result.output


def test_topics(run: Run) -> None:
    made = run("make", "--config", "{config}", "--subscribe", "a.>", "--publish", "b.*").stdout
    allowed = ("--subscribe", "a.b", "--subscribe", "a.*", "--publish", "b.c")
    result = run("explain", "--config", "{config}", *allowed, stdin=made)
    assert result.exit_code == 0
    assert findings_of(result)["subscribe a.*"][0] == "ok"
    for wrong in (("--subscribe", ">"), ("--publish", "a.b")):
        result = run("explain", "--config", "{config}", *wrong, stdin=made)
        assert (result.exit_code, result.stderr) == (1, "a server refuses this: topic-not-allowed\n")
    assert "publish grants 'b.*', which does not cover it" in result.stdout


def test_keys_that_cannot_be_fetched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('[auth]\njwks_url = "http://127.0.0.1:1/"\n')
    (tmp_path / "key").write_text(private_pem(private_key("ES256")))
    result = run("explain", "--config", "{config}", stdin=run("make", "--key", "{folder}/key").stdout)
    assert result.exit_code == 1
    assert findings_of(result)["signature"][0] == "FAILED"
    assert "a server refuses this: keys-unavailable" in result.stderr
    assert "keys could not be fetched" in result.stderr


def test_a_set_of_keys_in_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_bytes(jwk_set(jwk_of("EdDSA", 0, kid="a"), jwk_of("EdDSA", 1, kid="b")))
    (tmp_path / "key").write_text(private_pem(private_key("EdDSA", 1)))
    (tmp_path / "server.toml").write_text(f'[[auth.key]]\nalgorithm = "EdDSA"\nfile = "{tmp_path}/set.json"\n')
    for options, expected in (((), "no kid; 2 keys to try"), (("--id", "b"), "kid 'b'; 1 key to try")):
        result = run("explain", "--config", "{config}", stdin=run("make", "--key", "{folder}/key", *options).stdout)
        assert findings_of(result)["signature"] == ("ok", expected)


# API keys


def test_an_api_key_is_made_with_what_the_configuration_has_to_say(run: Run, tmp_path: Path) -> None:
    made = run("key", "ci", "--publish", "ci.>", "--subscribe", "a", "--subscribe", 'b"c')
    assert made.exit_code == 0
    key = made.stdout.strip()
    file = tmp_path / "server.toml"
    file.write_text(made.stderr.partition("\n")[2])
    (entry,) = load_config(file).auth.api_key
    assert entry.hash == api_keys.hash_of(key)
    assert (entry.name, entry.publish, entry.subscribe) == ("ci", ("ci.>",), ("a", 'b"c'))
    assert key not in made.stderr
    result = run("explain", key, "--config", "{config}", "--publish", "ci.x")
    findings = findings_of(result)
    assert (result.exit_code, findings["API key"], findings["publish ci.x"][0]) == (0, ("ok", "ci"), "ok")


def test_the_whole_configuration_is_checked(tmp_path: Path) -> None:
    """``tricast check`` reads the keys as well, and tells no secret."""
    file = tmp_path / "server.toml"
    file.write_text(CONFIG + '[[auth.key]]\nalgorithm = "ES256"\nfile = "/nowhere/key.pem"\n')
    file.chmod(stat.S_IRUSR)
    result = CliRunner().invoke(cli.cli, ["check", str(file)])
    assert f"{file}: auth.key.1.file: /nowhere/key.pem: No such file or directory" in _said(result)
    file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    file.write_text(CONFIG)
    result = CliRunner().invoke(cli.cli, ["check", str(file)])
    assert (result.exit_code, result.output) == (0, f"{file}: ok\n")
    file.write_text(CONFIG.replace(SECRET, "hunter2"))
    result = CliRunner().invoke(cli.cli, ["check", str(file)])
    assert result.exit_code == 1
    assert "hunter2" not in _said(result) + result.output
