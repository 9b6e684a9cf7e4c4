"""The log in a Kafka that wants TLS, a certificate and a user, and lets users do no more than they may."""

from collections.abc import Iterator
from typing import Any

import pytest
import trio
from clocks import HANG_SECONDS
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from encryption import authority_file, certificate_file
from log.kafka_worlds import KafkaWorld, kafka_config, kafka_world, new_topic
from services import KafkaServer, wait_until

from tricast.errors import LogUnavailable

_USERS = {"app": "a secret", "limited": "another secret"}
_CONFIG = (
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users=User:ANONYMOUS;User:app",
)


@pytest.fixture(scope="module")
def guarded_kafka() -> Iterator[KafkaServer]:
    """A Kafka to which only those come who have a certificate and a password; one user may do anything."""
    files = {"certificate": certificate_file(), "authority": authority_file()}
    with KafkaServer(users=_USERS, asks_certificates=True, config=_CONFIG, **files) as server:
        yield server


def settings_of(user: str, password: str = "", **more: Any) -> dict[str, Any]:
    """The section of the log for a user."""
    sasl = {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": user}
    tls = {"tls_ca": authority_file(), "tls_certificate": certificate_file()}
    return {"kafka": sasl | {"sasl.password": password or _USERS[user]}, **tls, **more}


async def is_refused(kafka: KafkaServer, topic: str, settings: dict[str, Any], expected: str) -> None:
    """A log cannot be opened, and it is told why: not each time, where Kafka takes longer than the log's timeout."""
    why = ""
    with trio.fail_after(HANG_SECONDS):
        while expected not in why:
            with pytest.raises(LogUnavailable) as error:
                async with KafkaWorld(kafka_config(kafka, topic, **settings)).open():
                    pass
            why = error.value.why
            assert "secret" not in why


async def test_users_and_encryption(guarded_kafka: KafkaServer) -> None:
    topic = new_topic(guarded_kafka)
    async with kafka_world(guarded_kafka, topic, **settings_of("app")) as world:
        await world.append("a")
        await world.append("a", "b")
        await world.handed_over(3)
        assert len(await world.read_all(">")) == 3
    for settings, expected in (
        (settings_of("app", "a wrong secret", timeout="2s"), "Authentication failed"),
        (settings_of("app", timeout="2s") | {"tls_ca": ""}, "certificate verify failed"),
    ):
        await is_refused(guarded_kafka, topic, settings, expected)


async def test_certificates_of_clients(guarded_kafka: KafkaServer) -> None:
    topic = new_topic(guarded_kafka)
    async with kafka_world(guarded_kafka, topic, **settings_of("app")) as world:
        await world.append("a")
        await world.handed_over(1)
    without = settings_of("app", timeout="2s")
    del without["tls_certificate"]
    await is_refused(guarded_kafka, topic, without, "SSL")


async def test_what_a_user_has_to_be_allowed(guarded_kafka: KafkaServer) -> None:
    topic = new_topic(guarded_kafka)
    settings = settings_of("limited")

    async def allow(kind: ResourceType, name: str, pattern: ResourcePatternType, operation: AclOperation) -> None:
        binding = AclBinding(kind, name, pattern, "User:limited", "*", operation, AclPermissionType.ALLOW)
        with guarded_kafka.admin() as admin:
            (future,) = admin.create_acls([binding]).values()
            await trio.to_thread.run_sync(future.result)
            await trio.to_thread.run_sync(wait_until, lambda: is_known(admin, binding), "the broker to know of it")

    def is_known(admin: AdminClient, binding: AclBinding) -> bool:
        """Whether it holds, which is a moment after it was accepted."""
        wanted = AclBindingFilter(
            binding.restype,
            binding.name,
            binding.resource_pattern_type,
            binding.principal,
            binding.host,
            binding.operation,
            binding.permission_type,
        )
        return bool(admin.describe_acls(wanted).result())

    literal = ResourcePatternType.LITERAL
    await is_refused(guarded_kafka, topic, settings, "authorization failed")
    await allow(ResourceType.TOPIC, topic, literal, AclOperation.DESCRIBE)
    await is_refused(guarded_kafka, topic, settings, "authorization failed")
    await allow(ResourceType.TOPIC, topic, literal, AclOperation.READ)
    async with kafka_world(guarded_kafka, topic, **settings) as world:
        with pytest.raises(LogUnavailable, match="authorization failed"):
            await world.append("a")
    await allow(ResourceType.TOPIC, topic, literal, AclOperation.WRITE)
    for operation in (AclOperation.DESCRIBE, AclOperation.WRITE):
        await allow(ResourceType.TRANSACTIONAL_ID, "tricast-", ResourcePatternType.PREFIXED, operation)
    async with kafka_world(guarded_kafka, topic, cache_size=1, **settings) as world:
        await world.append("a")
        await world.append("a", "a")
        await world.handed_over(3)
        assert len(await world.read_all("a")) == 3
