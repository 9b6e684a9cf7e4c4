"""What errors tell, and whom."""

import pytest

from tricast.errors import LogUnavailable


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("127.0.0.1:6379: no connection to Redis: Connection refused", "no connection to Redis: Connection refused"),
        ("shard 3: [::1]:6379: Redis does not answer", "shard 3: Redis does not answer"),
        (
            "none of the sentinels tells where the primary is: redis.internal:26379: Redis does not answer",
            "none of the sentinels tells where the primary is: Redis does not answer",
        ),
        (
            "a.internal:9092, b.internal:9092: a.internal:9092/bootstrap: Connect to ipv4#10.0.0.5:9092 failed: No",
            "Connect to a server failed: No",
        ),
        (
            "sasl_ssl://a.internal:9093/1: Failed to resolve 'a.internal:9093': Name or service not known",
            "Failed to resolve 'a server': Name or service not known",
        ),
        (
            "GroupCoordinator: a.internal:9092: Disconnected (after 9ms in state UP)",
            "GroupCoordinator: Disconnected (after 9ms in state UP)",
        ),
        ("only 0 of 1 replicas have it", "only 0 of 1 replicas have it"),
        ("log.shards: expected 2, found 3", "log.shards: expected 2, found 3"),
    ],
)
def test_clients_are_not_told_where_the_log_is(why: str, told: str) -> None:
    error = LogUnavailable(why)
    assert error.detail == f"the log is not available: {told}"
    assert str(error) == f"the log is not available: {why}"
    assert error.why == why
