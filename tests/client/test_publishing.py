"""Publishing: what is sent, and that it is sent once."""

import pytest
from client.scripted import EAGER, ScriptedServer

from tricast.client import ClientError, ClientSettings, Lost, publish, publish_ndjson


async def answer_id(peer):
    await peer.read_request()
    await peer.respond(200, '{"id":"7-0"}', Content_Type="application/json")


async def answer_ids(peer):
    await peer.read_request()
    await peer.respond(200, '{"ids":["7-0","7-1"]}', Content_Type="application/json")


async def drop(peer):
    await peer.read_request()


async def publish_to(*scenes, **options):
    """Publishes to a scripted server; returns what it was told and the id."""
    server = ScriptedServer(*scenes)
    async with server.in_memory() as dial:
        given = await publish(server.url, "news", '{"n":1}', dial=dial, settings=EAGER, **options)
    return server.peers, given


async def test_one_event():
    [peer], given = await publish_to(answer_id)
    assert given == "7-0"
    assert (peer.request.method, peer.target, peer.body) == (b"POST", "/publish?topic=news", b'{"n":1}')
    assert peer.headers["host"] == "server.test"
    assert peer.headers["idempotency-key"]


async def test_type_and_key():
    [peer], _ = await publish_to(answer_id, type="a&b", idempotency_key="mine")
    assert peer.target == "/publish?topic=news&type=a%26b"
    assert peer.headers["idempotency-key"] == "mine"


async def test_bytes_and_nothing():
    server = ScriptedServer(answer_id, answer_id)
    async with server.in_memory() as dial:
        await publish(server.url, "news", b"\xff", dial=dial)
        await publish(server.url, "news", b"", dial=dial)
    assert [peer.body for peer in server.peers] == [b"\xff", b""]


async def test_a_retry_has_the_same_key():
    peers, given = await publish_to(drop, drop, answer_id)
    assert given == "7-0"
    assert len({peer.headers["idempotency-key"] for peer in peers}) == 1
    assert [peer.body for peer in peers] == [b'{"n":1}'] * 3


async def test_two_events_have_two_keys():
    server = ScriptedServer(answer_id, answer_id)
    async with server.in_memory() as dial:
        await publish(server.url, "news", "x", dial=dial)
        await publish(server.url, "news", "x", dial=dial)
    assert len({peer.headers["idempotency-key"] for peer in server.peers}) == 2


async def test_it_gives_up():
    with pytest.raises(Lost, match="the server closed the connection"):
        await publish_to(*[drop] * 4)


async def test_a_busy_server_is_asked_again_when_it_says(autojump_clock):
    async def busy(peer):
        await peer.read_request()
        await peer.problem(503, "too much", Retry_After="7")

    _, given = await publish_to(busy, answer_id)
    assert given == "7-0"
    assert autojump_clock.current_time() >= 7


async def test_a_refusal_is_final():
    async def refuse(peer):
        await peer.read_request()
        await peer.problem(400, "a topic is words")

    with pytest.raises(ClientError, match=r"^the server answered 400 Reason: a topic is words$") as caught:
        await publish_to(refuse, answer_id)
    assert caught.value.status == 400


async def test_no_answer(autojump_clock):
    server = ScriptedServer()
    settings = ClientSettings(publish_attempts=2)
    async with server.in_memory() as dial:
        with pytest.raises(Lost, match=r"no answer from http://server\.test within 30 s"):
            await publish(server.url, "news", "x", dial=dial, settings=settings)
    assert len(server.peers) == 2


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"ids":[]}', '{"id":7}'])
async def test_an_answer_without_the_id(body):
    async def answer(peer):
        await peer.read_request()
        await peer.respond(200, body)

    with pytest.raises(ClientError, match="is it a Tricast server"):
        await publish_to(answer)


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (404, {}, "<h1>", "^the server answered 404 Reason$"),
        (301, {"Location": "https://a/"}, "", "^the server answered 301 Reason: use https://a/$"),
        (400, {"Content_Type": "application/problem+json"}, '{"title":"Bad"}', "400 Reason: Bad$"),
        (400, {"Content_Type": "application/problem+json"}, "{}", "400 Reason$"),
        (400, {"Content_Type": "application/problem+json"}, "{", "400 Reason$"),
        (400, {"Content_Type": "application/problem+json"}, '"' + "a" * 70_000 + '"', "400 Reason$"),
    ],
)
async def test_what_a_refusal_says(status, headers, body, said):
    async def refuse(peer):
        await peer.read_request()
        await peer.respond(status, body, **headers)

    with pytest.raises(ClientError, match=said):
        await publish_to(refuse)


async def test_a_refusal_that_does_not_finish(autojump_clock):
    async def refuse(peer):
        await peer.read_request()
        await peer.stream.send_all(
            b"HTTP/1.1 400 No\r\nContent-Type: application/problem+json\r\nContent-Length: 9\r\n\r\n{"
        )
        await peer.wait_closed()

    with pytest.raises(ClientError, match=r"^the server answered 400 No$"):
        await publish_to(refuse)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "closed the connection"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "does not speak HTTP"),
    ],
)
async def test_what_is_not_an_answer(sent, said):
    async def scene(peer):
        await peer.read_request()
        await peer.stream.send_all(sent)

    with pytest.raises(Lost, match=said):
        await publish_to(*[scene] * 4)


async def test_an_early_hint_is_passed_over():
    async def scene(peer):
        await peer.read_request()
        await peer.stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await peer.respond(200, '{"id":"7-0"}')

    assert (await publish_to(scene))[1] == "7-0"


async def test_lines():
    server = ScriptedServer(drop, answer_ids)
    async with server.in_memory() as dial:
        ids = await publish_ndjson(server.url, ['{"topic":"a","data":1}\n', b'{"topic":"b","data":2}'], dial=dial)
    peer = server.peers[-1]
    assert ids == ["7-0", "7-1"]
    assert (peer.target, peer.headers["content-type"]) == ("/publish", "application/x-ndjson")
    assert peer.body == b'{"topic":"a","data":1}\n{"topic":"b","data":2}\n'
    assert len({peer.headers["idempotency-key"] for peer in server.peers}) == 1


async def test_an_answer_without_the_ids():
    server = ScriptedServer(answer_id)
    async with server.in_memory() as dial:
        with pytest.raises(ClientError, match="without the events' ids"):
            await publish_ndjson(server.url, ["{}"], dial=dial)
