"""What a server tells of its log, while Redis comes and goes."""

from services import RedisServer
from serving import Metrics, about, metrics_of, pause, serving
from structlog.testing import LogCapture

from tricast import Server
from tricast.errors import LogUnavailable


async def told(server: Server, *, is_available: bool) -> Metrics:
    """The metrics, once they say whether the log is there."""
    while (metrics := await metrics_of(server.url))["log_available",] != is_available:
        await pause()
    return metrics


async def test_a_log_that_comes_and_goes(redis: RedisServer) -> None:
    records = LogCapture()
    async with serving(records=records, log={"url": redis.url, "shards": 2}) as server:
        for number in range(10):
            await server.hub.publish(f"topic.{number}", number)
        before = await told(server, is_available=True)
        assert before["log_append_seconds_count",] == 10
        assert 0 < before["log_append_seconds_sum",] < 60
        assert before["log_append_seconds_bucket", "+Inf"] == 10
        assert before["log_reconnects_total",] == before["log_read_seconds_count",] == 0
        redis.kill()
        await told(server, is_available=False)
        try:
            await server.hub.publish("topic", 1)
        except LogUnavailable:
            pass
        else:
            raise AssertionError("it was taken")
        redis.start()
        after = await told(server, is_available=True)
        assert after["log_append_seconds_count",] == 10
        assert after["log_reconnects_total",] >= 1
        while set(about(after, "log_lag_events")) != {("0",), ("1",)}:
            after = await metrics_of(server.url)
        assert set(about(after, "log_lag_events").values()) == {0}
    assert [entry["event"] for entry in records.entries if entry["log_level"] == "error"] != []
