"""Application handlers that the configuration names wrongly: all are told at once, each with its key."""

from pathlib import Path

import pytest
from cli.running import run

import tricast

GOOD = "tricast.handlers:echo"
TAKEN = [
    "/",
    "/events",
    "/ws",
    "/publish",
    "/healthz",
    "/readyz",
    "/metrics",
    "/style.css",
    "/tricast.js",
    "/favicon.svg",
]
BROKEN = {
    "broken_syntax": "def f(:\n",
    "broken_import": "import nowhere_at_all\n",
    "broken_at_work": "raise ValueError('first line\\nsecond line')\n",
    "handlers_of_other_kinds": (
        "import functools\n\ndef plain(session): pass\nnumber = 7\nclass Handler: pass\n"
        "async def generator(session):\n    yield\n"
    ),
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes modules importable here and in programs that are started, each with something wrong in it."""
    for name, source in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


async def problems_of(*entries: tuple[str, str]) -> list[str]:
    handlers = [{"path": path, "handler": handler} for path, handler in entries]
    config = tricast.Config.model_validate({"server": {"port": 0}, "websocket": {"handler": handlers}})
    with pytest.raises(tricast.ConfigError) as caught:
        await tricast.serve(config)
    return [f"{problem.key}: {problem.message}" for problem in caught.value.problems]


@pytest.mark.parametrize("path", TAKEN)
async def test_a_path_that_the_server_uses(path: str) -> None:
    assert await problems_of(("/echo", GOOD), (path, GOOD)) == [f"websocket.handler.1.path: {path} is in use already"]


async def test_a_path_that_is_there_twice() -> None:
    assert await problems_of(("/a", GOOD), ("/b", GOOD), ("/a", "tricast.handlers:chat")) == [
        "websocket.handler.2.path: /a is in use already"
    ]


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        ("nowhere_at_all:echo", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("tricast.nowhere:echo", "ModuleNotFoundError: No module named 'tricast.nowhere'"),
        ("tricast.handlers:nothing", "AttributeError: module 'tricast.handlers' has no attribute 'nothing'"),
        ("broken_syntax:f", "SyntaxError: "),
        ("broken_import:f", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("broken_at_work:f", "ValueError: first line second line"),
        *[
            (
                f"handlers_of_other_kinds:{name}",
                f"TypeError: handlers_of_other_kinds:{name} is not an async def function",
            )
            for name in ("plain", "number", "Handler", "generator")
        ],
    ],
)
async def test_a_handler_that_cannot_be_one(modules: Path, handler: str, problem: str) -> None:
    (found,) = await problems_of(("/a", handler))
    assert found.startswith(f"websocket.handler.0.handler: {problem}")
    assert len(found.splitlines()) == 1


async def test_the_program_tells_all_of_them_a_line_each(modules: Path) -> None:
    wrong = [
        ("/publish", GOOD, "path"),
        ("/a", "nowhere_at_all:echo", "handler"),
        ("/b", "tricast.handlers:nothing", "handler"),
        ("/c", "broken_syntax:f", "handler"),
        ("/d", "broken_at_work:f", "handler"),
        ("/e", "handlers_of_other_kinds:plain", "handler"),
        ("/e", GOOD, "path"),
    ]
    file = modules / "server.toml"
    entries = [f'[[websocket.handler]]\npath = "{path}"\nhandler = "{handler}"\n' for path, handler, _ in wrong]
    file.write_text("[server]\nport = 0\n" + "".join(entries))
    code, out, said = await run("serve", "--config", str(file))
    assert (code, out) == (1, "")
    assert [line.split(": ")[2] for line in said.splitlines()] == [
        f"websocket.handler.{index}.{key}" for index, (_, _, key) in enumerate(wrong)
    ]
    assert "Traceback" not in said
