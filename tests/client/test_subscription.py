"""Subscribing, on a memory stream and a clock that jumps: reconnecting, falling back, waiting."""

import random

import h11
import pytest
import trio
from client.scripted import (
    EAGER,
    CloseConnection,
    ScriptedServer,
    event_json,
    gap_json,
    refuse_upgrade,
    sse_event,
    take,
    take_events,
)
from wsproto.events import BytesMessage, Ping, Pong, TextMessage

from tricast.client import ClientError, ClientSettings, Connected, Disconnected, subscribe
from tricast.event import Event, EventId, Gap, GapReason

NEWS = Event(EventId(6, 0), "news", "message", b'{"n":1}')


class Highest(random.Random):
    """Always draws the highest number."""

    def uniform(self, a, b):
        return b


class Playing:
    """A scripted server with a subscription to it, for a block."""

    def __init__(self, *scenes, transport, topics=("news",), last_id=None, settings=None):
        self.server = ScriptedServer(*scenes)
        self._options = {"transport": transport, "last_id": last_id, "settings": settings, "chance": Highest()}
        self._topics = topics

    async def __aenter__(self):
        self._memory = self.server.in_memory()
        dial = await self._memory.__aenter__()
        self._subscribed = subscribe(self.server.url, self._topics, dial=dial, **self._options)
        return await self._subscribed.__aenter__()

    async def __aexit__(self, *error):
        try:
            await self._subscribed.__aexit__(*error)
        finally:
            await self._memory.__aexit__(None, None, None)

    @property
    def peers(self):
        return self.server.peers


# One behaviour over all transports. A scene sends these events after the position 5-0 and then ends the connection.


async def sse_three(peer):
    await peer.begin_stream()
    await peer.chunk(b"".join(map(sse_event, (6, 7, 8))))


async def ws_three(peer):
    await peer.accept()
    for number in (6, 7, 8):
        await peer.frame(event_json(number))


async def answer_three(peer):
    await peer.read_poll()
    events = ",".join(map(event_json, (6, 7, 8)))
    await peer.respond(200, f'{{"events":[{events}],"last_id":"8-0"}}', Last_Event_ID="8-0")


async def poll_three(peer):
    await peer.begin_polls()
    await answer_three(peer)


SCENES = {"sse": sse_three, "ws": ws_three, "poll": poll_three}


@pytest.mark.parametrize("transport", SCENES)
async def test_events_and_resuming(autojump_clock, transport):
    playing = Playing(SCENES[transport], SCENES[transport], transport=transport, topics=["news", "a.*"])
    async with playing as subscription:
        connected, first = await take(subscription, 2)
        assert connected == Connected(transport, "5-0")
        assert first == NEWS
        assert await take_events(subscription, 2) == [7, 8]
        lost = await anext(subscription)
        assert isinstance(lost, Disconnected)
        assert lost.delay > 0
        assert subscription.position == "8-0"
        assert isinstance(await anext(subscription), Connected)
    heard = [request for peer in playing.peers[:2] for request in peer.heard]
    assert all(request.target.startswith("/events?topic=news&topic=a.%2A") for request in heard)
    assert "last-event-id" not in playing.peers[0].heard[0].headers
    assert playing.peers[1].heard[0].headers["last-event-id"] == "8-0"


@pytest.mark.parametrize("transport", SCENES)
async def test_the_position_one_begins_with(autojump_clock, transport):
    playing = Playing(SCENES[transport], transport=transport, last_id="3-0")
    async with playing as subscription:
        await take(subscription, 2)
    assert {request.headers["last-event-id"] for request in playing.peers[0].heard} == {"3-0"}


async def refuse_for_good(peer):
    await peer.read_request()
    await peer.problem(403, "not for you")


@pytest.mark.parametrize("transport", [*SCENES, "auto"])
async def test_a_refusal_is_raised(autojump_clock, transport):
    async with Playing(*[refuse_for_good] * 3, transport=transport) as subscription:
        with pytest.raises(ClientError, match=r"^the server answered 403 Reason: not for you$") as caught:
            await take_events(subscription, 1)
        assert caught.value.status == 403
        with pytest.raises(ClientError):  # also when asked once more
            await anext(subscription)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
@pytest.mark.parametrize("transport", SCENES)
async def test_a_busy_server_is_asked_again_when_it_says(autojump_clock, transport, status):
    async def busy(peer):
        await peer.read_request()
        await peer.problem(status, "too much", Retry_After="7")

    # The answer to a HEAD has no body that says more, and a server that asks for rest is not asked again for it.
    why = f"the server answered {status} Reason" + ("" if transport == "poll" else ": too much")
    playing = Playing(busy, SCENES[transport], transport=transport)
    async with playing as subscription:
        assert await anext(subscription) == Disconnected(why, 7.5)
        assert await take_events(subscription, 3) == [6, 7, 8]
        assert trio.current_time() >= 7.5
    assert len(playing.peers[0].heard) == 1


@pytest.mark.parametrize("transport", SCENES)
async def test_backoff_grows_until_something_is_delivered(autojump_clock, transport):
    async def drop(peer):
        await peer.read_request()

    scenes = [drop, drop, drop, SCENES[transport], drop]
    delays = []
    async with Playing(*scenes, transport=transport) as subscription:
        while len(delays) < 5:
            item = await anext(subscription)
            if isinstance(item, Disconnected):
                delays.append(item.delay)
    # An event stream names its own delay, on top of which comes the jitter.
    assert [round(delay, 1) for delay in delays] == [0.5, 1, 2, 0.5, 1]


@pytest.mark.parametrize("transport", SCENES)
async def test_leaving_closes_the_connection(autojump_clock, transport):
    closed = trio.Event()

    async def hang(peer):
        await peer.read_request()
        await peer.wait_closed()
        closed.set()

    server = ScriptedServer(hang)
    async with server.in_memory() as dial:
        async with subscribe(server.url, ["news"], transport=transport, dial=dial):
            await trio.testing.wait_all_tasks_blocked()
        await closed.wait()


async def test_what_the_block_raises_leaves_it_as_it_is(autojump_clock):
    with pytest.raises(KeyError):
        async with Playing(transport="sse"):
            raise KeyError


@pytest.mark.parametrize(("url", "last_id"), [("nothing", None), ("http://server.test", "seven")])
async def test_wrong_arguments(autojump_clock, url, last_id):
    with pytest.raises(ClientError):
        async with subscribe(url, ["news"], last_id=last_id):
            raise AssertionError


async def sse_with_no_id(peer):
    await peer.begin_stream("id: é\n\n".encode())
    await peer.wait_closed()


async def sse_with_no_id_later(peer):
    await peer.begin_stream("id: 5-0\n\nid: é\n\n".encode())
    await peer.wait_closed()


async def ws_with_no_id(peer):
    await peer.accept('{"ok":"subscribe","topics":["news"],"last_id":"é"}')
    await peer.wait_closed()


async def poll_with_no_id(peer):
    await peer.begin_polls("é")
    await peer.wait_closed()


@pytest.mark.parametrize(
    ("transport", "scene"),
    [("sse", sse_with_no_id), ("sse", sse_with_no_id_later), ("ws", ws_with_no_id), ("poll", poll_with_no_id)],
)
async def test_a_position_that_is_no_id(autojump_clock, transport, scene):
    async with Playing(scene, transport=transport) as subscription:
        with pytest.raises(ClientError, match=r"the server sent what is not an event id: '\\xe9'$"):
            await take(subscription, 2)


async def test_a_connection_that_held_long_makes_up_for_failures(autojump_clock):
    async def drop(peer):
        await peer.read_request()

    async def quiet(peer):
        await peer.begin_stream(b"id: 5-0\n\n")
        await trio.sleep(31)

    async with Playing(drop, drop, quiet, transport="sse") as subscription:
        items = await take(subscription, 4)
    assert [item.delay for item in items if isinstance(item, Disconnected)] == [0.5, 1, 0.5]


# Server-Sent Events


async def test_sse_asks_for_whole_events(autojump_clock):
    playing = Playing(sse_three, transport="sse")
    async with playing as subscription:
        await take(subscription, 2)
    assert playing.peers[0].target == "/events?topic=news&envelope=json"
    assert playing.peers[0].headers["accept"] == "text/event-stream"


async def test_sse_dropped_within_an_event(autojump_clock):
    async def scene(peer):
        await peer.begin_stream()
        await peer.chunk(sse_event(6) + sse_event(7)[:-1])

    playing = Playing(scene, sse_three, transport="sse")
    async with playing as subscription:
        assert await take_events(subscription, 1) == [6]
        assert isinstance(await anext(subscription), Disconnected)
        await anext(subscription)
    assert playing.peers[1].headers["last-event-id"] == "6-0"


async def test_sse_dropped_before_the_first_event_resumes_from_the_opening(autojump_clock):
    async def scene(peer):
        await peer.begin_stream()

    playing = Playing(scene, sse_three, transport="sse")
    async with playing as subscription:
        await take(subscription, 3)
    assert playing.peers[1].headers["last-event-id"] == "5-0"


async def test_sse_opening_in_pieces(autojump_clock):
    async def scene(peer):
        await peer.begin_stream(b": hi\n")
        await peer.chunk(b"id: 5-0\n")
        await peer.chunk(b"\n")
        await peer.wait_closed()

    async with Playing(scene, transport="sse", last_id="3-0") as subscription:
        assert await anext(subscription) == Connected("sse", "5-0")


async def test_sse_retry_is_honoured_at_a_clean_end_and_at_a_break(autojump_clock):
    async def ends(peer):
        await peer.begin_stream(b"retry: 3000\nid: 5-0\n\n")
        await peer.end_stream()

    async def breaks(peer):
        await peer.begin_stream(b"retry: 4000\nid: 5-0\n\n")

    async with Playing(ends, breaks, transport="sse") as subscription:
        items = await take(subscription, 4)
    assert items[1] == Disconnected("the server ended the stream", 3.5)
    assert items[3] == Disconnected("the server closed the connection", 5.0)


async def test_sse_gap_and_other_events_of_the_server(autojump_clock):
    async def scene(peer):
        await peer.begin_stream()
        await peer.chunk(b"event: tricast.later\nid: 5-5\ndata: ?\n\n")
        await peer.chunk(f"event: tricast.gap\nid: 9-0\ndata: {gap_json(5, 9)}\n\n".encode())
        await trio.sleep_forever()

    async with Playing(scene, transport="sse") as subscription:
        assert await take(subscription, 2) == [
            Connected("sse", "5-0"),
            Gap(GapReason.EVICTED, EventId(5, 0), EventId(9, 0)),
        ]
        assert subscription.position == "9-0"


async def test_sse_fell_silent(autojump_clock):
    async def scene(peer):
        await peer.begin_stream()
        await trio.sleep(59)
        await peer.chunk(b":\n\n")
        await trio.sleep(61)

    async with Playing(scene, transport="sse") as subscription:
        items = await take(subscription, 2)
        assert items[1].why == "the event stream was silent for 60 s"
        assert trio.current_time() >= 119


async def test_sse_that_never_begins(autojump_clock):
    async def scene(peer):
        await peer.begin_stream(b"")
        await trio.sleep_forever()

    async with Playing(scene, sse_three, transport="sse") as subscription:
        assert (await anext(subscription)).why == "the event stream did not begin within 5 s"
        assert await take_events(subscription, 3) == [6, 7, 8]


async def test_sse_that_is_something_else(autojump_clock):
    async with Playing(answer_three, transport="sse") as subscription:
        with pytest.raises(ClientError, match="the server sent nothing for an event stream"):
            await anext(subscription)


async def test_sse_with_too_large_an_event(autojump_clock):
    settings = ClientSettings(max_message_bytes=50)
    async with Playing(sse_three, transport="sse", settings=settings) as subscription:
        await anext(subscription)
        with pytest.raises(ClientError, match="more than 50 bytes"):
            await anext(subscription)


# WebSocket


async def test_ws_position_without_events(autojump_clock):
    async def scene(peer):
        await peer.accept()

    playing = Playing(scene, ws_three, transport="ws")
    async with playing as subscription:
        await take(subscription, 3)
    assert playing.peers[0].headers["sec-websocket-protocol"] == "tricast.v1"
    assert "sec-websocket-extensions" not in playing.peers[0].headers
    assert playing.peers[1].headers["last-event-id"] == "5-0"


async def test_ws_gap_fragments_and_other_replies(autojump_clock):
    async def scene(peer):
        await peer.accept()
        await peer.frame('{"ok":"ping"}')
        await peer.frame(f'{{"gap":{gap_json(5, 9, "restarted")}}}')
        text = event_json(10)
        await peer.frame(TextMessage(text[:20], message_finished=False))
        await peer.frame(Ping(b"x"))
        assert await peer.read_frame() == Pong(b"x")
        await peer.frame(TextMessage(text[20:], message_finished=True))
        await trio.sleep_forever()

    async with Playing(scene, transport="ws") as subscription:
        connected, gap, event = await take(subscription, 3)
        assert connected == Connected("ws", "5-0")
        assert gap == Gap(GapReason.RESTARTED, EventId(5, 0), EventId(9, 0))
        assert event.id == EventId(10, 0)


@pytest.mark.parametrize(
    ("code", "reason", "why", "delay"),
    [
        (1012, "restarting, come back in 2.3 s", "1012: restarting, come back in 2.3 s", 2.8),
        (1013, "overloaded", "1013: overloaded", 0.5),
        (1000, None, "1000", 0.5),
    ],
)
async def test_ws_closed_for_a_while(autojump_clock, code, reason, why, delay):
    async def scene(peer):
        await peer.accept()
        await peer.frame(CloseConnection(code, reason))
        assert (await peer.read_frame()).code == code

    async with Playing(scene, ws_three, transport="ws") as subscription:
        items = await take(subscription, 2)
        assert items[1] == Disconnected(f"the server closed the WebSocket ({why})", pytest.approx(delay))
        assert await take_events(subscription, 1) == [6]


async def test_ws_pinged_and_closed_in_one_breath(autojump_clock):
    async def scene(peer):
        await peer.accept()
        await peer.stream.send_all(peer.ws.send(Ping(b"x")) + peer.ws.send(CloseConnection(1001)))
        assert await peer.read_frame() == Pong(b"x")
        assert (await peer.read_frame()).code == 1001

    async with Playing(scene, transport="ws") as subscription:
        items = await take(subscription, 2)
        assert items[1].why == "the server closed the WebSocket (1001)"


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009])
async def test_ws_closed_for_good(autojump_clock, code):
    async def scene(peer):
        await peer.accept()
        await peer.frame('{"error":{"code":"bad-topic","message":"a topic is words"}}')
        await peer.frame(CloseConnection(code, "policy"))
        await peer.wait_closed()

    async with Playing(scene, transport="ws") as subscription:
        await anext(subscription)
        with pytest.raises(ClientError, match=rf"WebSocket \({code}: a topic is words, policy\)$"):
            await anext(subscription)


async def test_ws_fell_silent_and_was_asked_for_a_sign_of_life(autojump_clock):
    pings = []

    async def scene(peer):
        await peer.accept()
        pings.append(await peer.read_frame())
        await peer.frame(pings[-1].response())
        pings.append(await peer.read_frame())
        await peer.wait_closed()

    async with Playing(scene, ws_three, transport="ws") as subscription:
        items = await take(subscription, 2)
        assert items[1].why == "the WebSocket was silent for 60 s"
        assert trio.current_time() >= 90
    assert pings == [Ping(b""), Ping(b"")]


async def test_ws_that_takes_no_bytes(autojump_clock):
    class Stuck(trio.abc.SendStream):
        async def send_all(self, data):
            await trio.sleep_forever()

        async def wait_send_all_might_not_block(self):
            raise AssertionError

        async def aclose(self):
            pass

    async def scene(peer):
        await peer.accept()
        stuck.send_stream = Stuck()
        await peer.frame(Ping(b"x"))
        await trio.sleep_forever()

    server = ScriptedServer(scene)
    async with server.in_memory() as memory_dial:

        async def dial(endpoint, settings):
            nonlocal stuck
            stuck = await memory_dial(endpoint, settings)
            return stuck

        stuck = None
        async with subscribe(server.url, ["news"], transport="ws", dial=dial) as subscription:
            items = await take(subscription, 2)
    assert items[1].why == "the WebSocket took no bytes for 60 s"


async def test_ws_with_too_large_an_event(autojump_clock):
    async def scene(peer):
        await peer.accept()
        await peer.frame(TextMessage("a" * 60, message_finished=False))
        await peer.wait_closed()

    settings = ClientSettings(max_message_bytes=90)
    async with Playing(scene, transport="ws", settings=settings) as subscription:
        assert isinstance(await anext(subscription), Connected)
    settings = ClientSettings(max_message_bytes=59)
    async with Playing(scene, transport="ws", settings=settings) as subscription:
        with pytest.raises(ClientError, match="more than 59 bytes"):
            await take(subscription, 2)


async def test_ws_with_a_binary_message(autojump_clock):
    async def scene(peer):
        await peer.accept()
        await peer.frame(BytesMessage(b"x"))
        await peer.wait_closed()

    async with Playing(scene, transport="ws") as subscription:
        await anext(subscription)
        with pytest.raises(ClientError, match="binary"):
            await anext(subscription)


async def test_ws_that_breaks_the_protocol(autojump_clock):
    async def scene(peer):
        await peer.accept()
        await peer.stream.send_all(b"\xff\xff")
        await peer.wait_closed()

    async with Playing(scene, ws_three, transport="ws") as subscription:
        items = await take(subscription, 2)
        assert items[1].why.startswith("the server broke the WebSocket protocol: ")
        assert await take_events(subscription, 1) == [6]


@pytest.mark.parametrize("accept", ["x", None])
async def test_ws_accepted_by_somebody_who_does_not_know_how(autojump_clock, accept):
    async def scene(peer):
        await peer.read_request()
        token = f"Sec-WebSocket-Accept: {accept}\r\n" if accept else ""
        head = f"HTTP/1.1 101 Hm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{token}\r\n"
        await peer.stream.send_all(head.encode())
        await peer.wait_closed()

    async with Playing(scene, transport="ws") as subscription:
        with pytest.raises(ClientError, match="does not know how to upgrade"):
            await anext(subscription)


async def test_ws_where_something_drops_the_upgrade_header(autojump_clock):
    async with Playing(answer_three, transport="ws") as subscription:
        with pytest.raises(ClientError, match="drops the Upgrade header"):
            await anext(subscription)


# Long polling


def positions_asked(playing):
    """Of each connection, the positions in its requests."""
    return [[request.headers.get("last-event-id") for request in peer.heard] for peer in playing.peers]


async def test_poll_on_one_connection(autojump_clock):
    async def scene(peer):
        await peer.begin_polls("4-0")
        await peer.read_poll()
        await peer.respond(204, Last_Event_ID="5-0")
        await answer_three(peer)
        await peer.read_poll()
        await peer.wait_closed()

    playing = Playing(scene, transport="poll")
    async with playing as subscription:
        assert await take(subscription, 2) == [Connected("poll", "4-0"), NEWS]
        assert await take_events(subscription, 2) == [7, 8]
        assert subscription.position == "8-0"
        await trio.testing.wait_all_tasks_blocked()
        assert positions_asked(playing) == [[None, "4-0", "5-0", "8-0"]]
    assert {request.headers["accept"] for request in playing.peers[0].heard} == {"application/json"}


async def test_poll_where_each_answer_closes_the_connection(autojump_clock):
    async def begin(peer):
        await peer.begin_polls("4-0", Connection="close")

    async def scene(peer):
        await peer.read_poll()
        await peer.respond(204, Last_Event_ID="5-0", Connection="close")

    playing = Playing(begin, scene, scene, answer_three, transport="poll")
    async with playing as subscription:
        assert await take(subscription, 2) == [Connected("poll", "4-0"), NEWS]
    assert positions_asked(playing)[:4] == [[None], ["4-0"], ["5-0"], ["5-0"]]


async def test_poll_is_connected_before_there_is_an_event(autojump_clock):
    async def scene(peer):
        await peer.begin_polls()
        await peer.read_poll()
        await peer.wait_closed()

    async with Playing(scene, transport="poll") as subscription:
        assert await anext(subscription) == Connected("poll", "5-0")
        assert subscription.position == "5-0"
        assert trio.current_time() == 0


@pytest.mark.parametrize("has_answered", [False, True])
async def test_poll_misses_nothing_between_a_first_poll_that_broke_and_the_next(autojump_clock, has_answered):
    async def breaks(peer):
        await peer.begin_polls()
        await peer.read_poll()
        if has_answered:
            await peer.stream.send_all(b"HTTP/1.1 200 OK\r\nLast-Event-ID: 6-0\r\nContent-Length: 100\r\n\r\n{")

    async def goes_on(peer):
        await peer.begin_polls("9-0")  # where the server stands by now
        await answer_three(peer)

    playing = Playing(breaks, goes_on, transport="poll")
    async with playing as subscription:
        connected, lost, again, event = await take(subscription, 4)
    assert connected == again == Connected("poll", "5-0")
    assert lost.why == "the server closed the connection"
    assert event == NEWS
    assert positions_asked(playing)[:2] == [[None, "5-0"], ["5-0", "5-0"]]


async def test_poll_whose_head_is_refused_says_why(autojump_clock):
    async def refuse_head(peer):
        await peer.read_request()
        assert peer.request.method == b"HEAD"
        await peer.respond(400, Last_Event_ID="9-0")
        await peer.wait_closed()

    async def explain(peer):
        await peer.read_poll()
        await peer.problem(400, "a topic is words")

    async with Playing(refuse_head, explain, transport="poll") as subscription:
        with pytest.raises(ClientError, match=r"^the server answered 400 Reason: a topic is words$"):
            await anext(subscription)


async def test_poll_whose_head_is_refused_for_a_while_says_why(autojump_clock):
    async def busy(peer):
        await peer.read_request()
        await peer.problem(503, "too much")

    playing = Playing(busy, busy, poll_three, transport="poll")
    async with playing as subscription:
        assert await anext(subscription) == Disconnected("the server answered 503 Reason: too much", 0.5)
        assert await take(subscription, 2) == [Connected("poll", "5-0"), NEWS]
    assert [request.method for peer in playing.peers[:2] for request in peer.heard] == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        *((status, "") for status in (200, 301, 404, 405, 500, 501)),
        (403, "Retry-After: 7\r\n"),
        (403, "Retry-After: 7\r\nContent-Type: application/problem+json\r\n"),
    ],
)
async def test_poll_where_head_tells_nothing(autojump_clock, status, headers):
    async def tell_nothing(peer):
        await peer.read_request()
        assert peer.request.method == b"HEAD"
        head = f"HTTP/1.1 {status} Reason\r\nContent-Length: 2\r\n{headers}\r\n"
        await peer.stream.send_all(head.encode())
        # Behind it comes a body, which there must not be. On this connection it would be taken for the next answer.
        await trio.testing.wait_all_tasks_blocked()
        await peer.stream.send_all(b"{}")
        await peer.wait_closed()

    async def go_on(peer):
        await peer.read_poll()
        await peer.respond(204, Last_Event_ID="5-0")
        await answer_three(peer)

    playing = Playing(tell_nothing, go_on, transport="poll")
    async with playing as subscription:
        assert await take(subscription, 2) == [Connected("poll", None), NEWS]
        assert trio.current_time() == 0
    assert len(playing.peers[0].heard) == 1
    assert positions_asked(playing)[:2] == [[None], [None, "5-0"]]


async def test_poll_whose_head_is_answered_after_other_heads(autojump_clock):
    async def scene(peer):
        await peer.read_request()
        hints = b"HTTP/1.1 103 Early Hints\r\nLast-Event-ID: 1-0\r\n\r\n"
        await peer.stream.send_all(hints + b"HTTP/1.1 200 OK\r\nLast-Event-ID: 5-0\r\nContent-Length: 99\r\n\r\n")
        peer.http.send(h11.Response(status_code=200, headers=[]))
        peer.http.send(h11.EndOfMessage())
        await answer_three(peer)

    async with Playing(scene, transport="poll") as subscription:
        assert await take(subscription, 2) == [Connected("poll", "5-0"), NEWS]


async def test_poll_whose_head_is_not_answered(autojump_clock):
    async with Playing(hang, poll_three, transport="poll") as subscription:
        assert await anext(subscription) == Disconnected("no answer to the poll for 60 s", 0.5)
        assert 60 <= trio.current_time() < 61
        assert await take(subscription, 2) == [Connected("poll", "5-0"), NEWS]


async def test_poll_without_an_answer(autojump_clock):
    async def scene(peer):
        await peer.begin_polls()
        await peer.read_poll()
        await peer.wait_closed()

    async with Playing(scene, transport="poll") as subscription:
        items = await take(subscription, 2)
        assert items[1].why == "no answer to the poll for 60 s"
        assert trio.current_time() < 61


async def test_poll_whose_answer_never_ends(autojump_clock):
    async def scene(peer):
        await peer.begin_polls()
        await peer.read_poll()
        await peer.stream.send_all(b"HTTP/1.1 200 OK\r\nLast-Event-ID: 6-0\r\nContent-Length: 100\r\n\r\n{")
        await peer.wait_closed()

    async with Playing(scene, transport="poll") as subscription:
        items = await take(subscription, 2)
        assert items[1].why == "no answer to the poll for 60 s"
        assert trio.current_time() < 61
        assert subscription.position == "5-0"


async def test_poll_with_bytes_behind_an_answer(autojump_clock):
    async def scene(peer):
        await peer.begin_polls()
        await peer.read_poll()
        await peer.stream.send_all(b"HTTP/1.1 204 OK\r\nLast-Event-ID: 5-0\r\n\r\nHTTP/1.1 403 Smuggled\r\n\r\n")
        await peer.wait_closed()

    async with Playing(scene, answer_three, transport="poll") as subscription:
        assert await take(subscription, 2) == [Connected("poll", "5-0"), NEWS]


async def test_poll_left_while_it_waits(autojump_clock):
    closed = trio.Event()

    async def scene(peer):
        await peer.begin_polls()
        await peer.read_poll()
        await peer.wait_closed()
        closed.set()

    server = ScriptedServer(scene)
    async with server.in_memory() as dial:
        async with subscribe(server.url, ["news"], transport="poll", dial=dial) as subscription:
            await anext(subscription)
            await trio.testing.wait_all_tasks_blocked()
        await closed.wait()


async def test_poll_with_a_gap_and_events_within_it(autojump_clock):
    async def scene(peer):
        await peer.begin_polls()
        await peer.read_poll()
        events = ",".join(map(event_json, (6, 7, 12)))
        await peer.respond(
            200, f'{{"events":[{events}],"last_id":"13-0","gap":{gap_json(5, 9)}}}', Last_Event_ID="13-0"
        )
        await peer.read_request()
        await peer.wait_closed()

    playing = Playing(scene, transport="poll", last_id="5-0")
    async with playing as subscription:
        _, *items = await take(subscription, 5)
        await trio.testing.wait_all_tasks_blocked()
    assert [item.id.ms if isinstance(item, Event) else item.resumed_at.ms for item in items] == [9, 6, 7, 12]
    assert playing.peers[0].headers["last-event-id"] == "13-0"


@pytest.mark.parametrize("status", [200, 204])
async def test_poll_of_a_server_that_drains(autojump_clock, status):
    async def scene(peer):
        await peer.begin_polls("4-0")
        await peer.read_poll()
        body = '{"events":[],"last_id":"5-0"}' if status == 200 else ""
        await peer.respond(status, body, Last_Event_ID="5-0", Retry_After="3")

    playing = Playing(scene, poll_three, transport="poll")
    async with playing as subscription:
        items = await take(subscription, 2)
        assert items == [Connected("poll", "4-0"), Disconnected("the server asked to come back later", 3.5)]
        await anext(subscription)
    assert playing.peers[1].heard[0].headers["last-event-id"] == "5-0"


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({}, '{"events":[],"last_id":"5-0"}', "without a Last-Event-ID"),
        ({"Last_Event_ID": "é"}, '{"events":[],"last_id":"5-0"}', r"not an event id: '\\xe9'$"),
        ({"Last_Event_ID": "5-0"}, "<html>", "does not send"),
        ({"Last_Event_ID": "5-0"}, "x" * 101, "more than 100 bytes"),
    ],
)
async def test_poll_answered_by_something_else(autojump_clock, headers, body, said):
    async def scene(peer):
        await peer.begin_polls()
        await peer.read_poll()
        await peer.respond(200, body, **headers)

    settings = ClientSettings(max_message_bytes=100)
    async with Playing(scene, transport="poll", settings=settings) as subscription:
        with pytest.raises(ClientError, match=said):
            await take(subscription, 2)


# Falling back


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "bad-topic"),
        (400, "bad-last-id"),
        (400, "limit-exceeded"),
        (401, "token-expired"),
        (403, "topic-not-allowed"),
    ],
)
async def test_auto_does_not_ask_another_way_for_what_is_refused_every_way(autojump_clock, status, code):
    async def refuse(peer):
        await peer.read_request()
        await peer.problem(status, "not this", code=code)

    playing = Playing(refuse, sse_three, transport="auto")
    async with playing as subscription:
        with pytest.raises(ClientError, match=f"^the server answered {status} Reason: not this$") as caught:
            await anext(subscription)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert len(playing.peers) == 1


@pytest.mark.parametrize(("status", "code"), [(400, "bad-handshake"), (403, "proxy"), (431, "limit-exceeded")])
async def test_auto_asks_another_way_where_the_upgrade_is_refused(autojump_clock, status, code):
    async def refuse(peer):
        await peer.read_request()
        await peer.problem(status, "not so", code=code)

    async with Playing(refuse, sse_three, transport="auto") as subscription:
        fallen, connected = await take(subscription, 2)
    assert isinstance(fallen, Disconnected)
    assert connected == Connected("sse", "5-0")


async def drop_upgrade(peer):
    await peer.read_request()


async def hang(peer):
    await peer.read_request()
    await peer.wait_closed()


async def stall_stream(peer):
    await peer.begin_stream(b"")
    await peer.wait_closed()


def refuse_with(status):
    async def scene(peer):
        await peer.read_request()
        await peer.respond(status)

    return scene


async def test_auto_takes_the_websocket(autojump_clock):
    async with Playing(ws_three, transport="auto") as subscription:
        assert await anext(subscription) == Connected("ws", "5-0")


@pytest.mark.parametrize(
    "scene", [refuse_upgrade, drop_upgrade, hang, *map(refuse_with, [200, 204, 400, 403, 404, 405, 501, 502])]
)
async def test_auto_falls_back_to_an_event_stream(autojump_clock, scene):
    async with Playing(scene, sse_three, transport="auto") as subscription:
        fallen, connected = await take(subscription, 2)
        assert isinstance(fallen, Disconnected)
        assert fallen.delay == 0
        assert connected == Connected("sse", "5-0")
        assert await take_events(subscription, 3) == [6, 7, 8]


@pytest.mark.parametrize("scene", [stall_stream, answer_three])
async def test_auto_falls_back_to_long_polling(autojump_clock, scene):
    async with Playing(refuse_upgrade, scene, poll_three, transport="auto") as subscription:
        fallen, again, connected = await take(subscription, 3)
        assert (fallen.delay, again.delay) == (0, 0)
        assert connected == Connected("poll", "5-0")
        assert await take_events(subscription, 3) == [6, 7, 8]


async def test_auto_stays_with_what_works(autojump_clock):
    async with Playing(refuse_upgrade, sse_three, sse_three, transport="auto") as subscription:
        await take_events(subscription, 3)
        lost, connected = await take(subscription, 2)
        assert isinstance(lost, Disconnected)
        assert connected == Connected("sse", "5-0")


async def test_auto_tries_the_best_again_when_nothing_worked(autojump_clock):
    async with Playing(refuse_upgrade, sse_three, refuse_with(500), ws_three, transport="auto") as subscription:
        await take_events(subscription, 3)
        await take(subscription, 2)
        assert await anext(subscription) == Connected("ws", "5-0")


async def test_auto_waits_for_a_busy_server_rather_than_falling_back(autojump_clock):
    async with Playing(refuse_with(503), ws_three, transport="auto", settings=EAGER) as subscription:
        lost, connected = await take(subscription, 2)
        assert lost.why == "the server answered 503 Reason"
        assert connected == Connected("ws", "5-0")


async def test_a_position_outlives_the_transport(autojump_clock):
    playing = Playing(ws_three, refuse_upgrade, sse_three, transport="auto")
    async with playing as subscription:
        await take_events(subscription, 6)
    assert [peer.headers.get("last-event-id") for peer in playing.peers[1:3]] == ["8-0"] * 2
