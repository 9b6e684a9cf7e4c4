"""``config/compose.yaml``, as far as there need be no Docker: what its parts are told is told to the real ones."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import trio
import yaml
from clients import ask, publish, subscribe
from clocks import HANG_SECONDS
from proxies.ready import edited
from proxies.real import real_proxy
from services import KafkaServer
from serving import serving

ROOT = Path(__file__).parents[2]
FILE = ROOT / "config" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    for other, condition in service.get("depends_on", {}).items():
        assert condition["condition"] != "service_healthy" or "healthcheck" in SERVICES[other]
        assert condition.get("required", True) is ("profiles" not in SERVICES[other] or "profiles" in service)
    assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(COMPOSE["volumes"])
    assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])
    assert re.fullmatch(r"(\w+/)?\w+:[\w.]+", service["image"])  # a name and a tag, of no particular registry
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_image_has_all_that_the_package_is_built_from(tmp_path: Path) -> None:
    """Nothing but what is copied there is needed to build it, and the extras are in it that the logs want."""
    lines = COMPOSE["x-tricast"]["build"]["dockerfile_inline"].splitlines()
    copied = [part for line in lines if line.startswith("COPY ") for part in line.split()[1:-1]]
    for part in copied:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / part)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "dist"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=HANG_SECONDS)
    [wheel] = (tmp_path / "dist").iterdir()
    with ZipFile(wheel) as archive:
        [name] = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = archive.read(name).decode()
    [extras] = re.findall(r"pip install .*\.\[(.*)\]", "\n".join(lines))
    assert set(extras.split(",")) <= set(re.findall(r"^Provides-Extra: (\S+)", metadata, re.MULTILINE))


def test_the_server_understands_what_it_is_told() -> None:
    tricast = SERVICES["tricast-1"]
    assert SERVICES["tricast-2"] == tricast
    command = [sys.executable, "-m", "tricast", *tricast["command"], "--help"]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_SECONDS)
    assert "server tricast-1:8080;" in COMPOSE["configs"]["nginx"]["content"]
    assert tricast["command"][-2:] == ["--port", "8080"]


async def test_requests_are_dealt_out_in_turn_on_every_transport() -> None:
    nginx = COMPOSE["configs"]["nginx"]["content"].replace("$$", "$")
    config = edited(
        nginx,
        (
            ("listen 80;", "listen 127.0.0.1:@port@;"),
            ("server tricast-1:8080;", "server 127.0.0.1:@one@;"),
            ("server tricast-2:8080;", "server 127.0.0.1:@two@;"),
        ),
    )
    async with (
        serving() as one,
        serving() as two,
        real_proxy("nginx", config, one=one.port, two=two.port) as proxy,
    ):
        for number in range(4):
            await publish(proxy.url, "turns", number)
        kept = [
            [event["data"] for event in (await ask(url, "GET", "/events?topic=turns&last_id=0-0")).json()["events"]]
            for url in (one.url, two.url)
        ]
        assert sorted(kept) == [[0, 2], [1, 3]]
        for transport in ("sse", "ws"):
            with await subscribe(transport, proxy.url, transport) as subscriber:
                await one.hub.publish(transport, "here")
                await two.hub.publish(transport, "here")
                assert (await subscriber.event()).data == "here"


async def test_kafka_can_be_started_with_what_it_is_told() -> None:
    """What the image makes of its variables: lower case, and dots; where it listens is elsewhere here."""
    environment: dict[str, str] = SERVICES["kafka"]["environment"]
    told = {name.removeprefix("KAFKA_").replace("_", ".").lower(): value for name, value in environment.items()}
    places = {"node.id", "controller.quorum.voters", "listeners", "advertised.listeners", "log.dirs"}
    names = {"listener.security.protocol.map", "controller.listener.names", "inter.broker.listener.name"}
    assert set(told) > places | names
    lines = [f"{name}={value}" for name, value in told.items() if name not in places | names]
    assert {"process.roles=broker,controller", "auto.create.topics.enable=false"} <= set(lines)
    command = SERVICES["kafka-topic"]["command"]
    config = dict([command[command.index("--config") + 1].split("=")])
    with KafkaServer(config=lines) as kafka:
        await trio.to_thread.run_sync(kafka.create_topic, command[command.index("--topic") + 1], 1, config)
