"""Publishers that repeat a request until they know what became of it, or give up."""

import json
import random
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

import trio
from clients import Answer, Closed, ask
from faults.history import Journal, Publication, Violation

#: How long a publisher waits for an answer: less than it takes, about as long, and longer than anybody needs.
_ATTEMPT_SECONDS = (0.3, 2.0, 8.0)
_PAD = "x"


class FaultyPublisher:
    """Publishes one request after the other, each to any of the servers.

    Args:
        journal: where all is noted.
        urls: of the servers.
        topics: single ones.
        batches: topics of which one batch may hold several.
        prefix: of its Idempotency-Keys, which nobody else uses.
        numbers: decides what it does.
        clock: seconds since the start of the round.
        patience: seconds after which it gives up on a request.
    """

    def __init__(
        self,
        journal: Journal,
        urls: Sequence[str],
        *,
        topics: Sequence[str],
        batches: Sequence[Sequence[str]],
        prefix: str,
        numbers: random.Random,
        clock: Callable[[], float],
        patience: float,
    ) -> None:
        self._journal = journal
        self._urls = urls
        self._topics = topics
        self._batches = batches
        self._prefix = prefix
        self._numbers = numbers
        self._clock = clock
        self._patience = patience
        self.gave_up = 0

    async def run(self, period: float, stopped: trio.Event) -> None:
        """Publishes until it is told to stop.

        Args:
            period: seconds from one request to the next, on average.
            stopped: ends it after the request that is under way.
        """
        while not stopped.is_set():
            if self._numbers.random() < 0.1:
                group = self._numbers.choice(self._batches)
                topics = self._numbers.choices(group, k=self._numbers.randint(2, 5))
            else:
                topics = [self._numbers.choice(self._topics)]
            publications = await self.publish(topics)
            if publications is not None and self._numbers.random() < 0.03:
                await self._attempt(publications)  # a publisher that did not get the answer: it gets the same again
            await trio.sleep(self._numbers.expovariate(1 / period))

    async def publish(self, topics: Sequence[str]) -> Sequence[Publication] | None:
        """Publishes an event to each of these topics in one request; returns None when it gave up."""
        publications = self._journal.sent(topics, self._clock())
        gives_up_at = self._clock() + self._patience
        while not await self._attempt(publications):
            if self._clock() > gives_up_at:
                self.gave_up += 1
                return None
            await trio.sleep(self._numbers.uniform(0.05, 0.5))
        return publications

    async def _attempt(self, publications: Sequence[Publication]) -> bool:
        """Sends a request once; returns whether it was acknowledged."""
        url = self._numbers.choice(self._urls)
        with trio.move_on_after(self._numbers.choice(_ATTEMPT_SECONDS)):
            try:
                answer = await self._send(url, publications)
            except (OSError, Closed):
                return False
            if answer.status == 200:
                body = answer.json()
                ids = body["ids"] if "ids" in body else [body["id"]]
                self._journal.acknowledged(publications, ids, self._clock())
                return True
            if answer.status != 503:
                text = f"{publications[0]} was answered with {answer.status} {answer.body.decode()}"
                self._journal.violations.append(Violation("refused", text))
        return False

    async def _send(self, url: str, publications: Sequence[Publication]) -> Answer:
        key = f"Idempotency-Key: {self._prefix}-{publications[0].request}"
        data = [self._data(each) for each in publications]
        if len(publications) == 1:
            query = urlencode({"topic": publications[0].topic})
            return await ask(url, "POST", f"/publish?{query}", key, body=data[0].encode())
        lines = [f'{{"topic":"{each.topic}","data":{text}}}\n' for each, text in zip(publications, data, strict=True)]
        headers = ("Content-Type: application/x-ndjson", key)
        return await ask(url, "POST", "/publish", *headers, body="".join(lines).encode())

    @staticmethod
    def _data(publication: Publication) -> str:
        """The event's data; some are long, and the same ones each time."""
        pad = 3000 if publication.name % 17 == 0 else publication.name % 40
        return json.dumps({"n": publication.name, "pad": _PAD * pad})
