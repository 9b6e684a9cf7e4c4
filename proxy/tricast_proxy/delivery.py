"""An answer on its way to the client, wherever it comes from: a server, or somebody who asked for the same before."""

from collections.abc import Callable

from tricast_proxy.answers import interim_answers
from tricast_proxy.buffering import Relaying, relay_for, without_signals
from tricast_proxy.config import ResponseSection
from tricast_proxy.faults import Duplex, Injected
from tricast_proxy.heads import Fields, RequestHead, ResponseHead
from tricast_proxy.relay import Source, relay_at_once
from tricast_proxy.streams import ClientBody
from tricast_proxy.timers import Watch


class Delivery:
    """An answer and the client that gets it.

    Args:
        request: that it answers.
        source: it; what is added to its head and removed from it is this client's alone.
        fields: what the client gets beside.
        connection: the client's.
        watch: is told when the client takes something.
        config: how it is relayed.
        has_body: whether it may have a body at all.
        passes_end: whether its end is that of the client's connection, as it is that of the server's.
        closing: says whether the client's connection ends after it, as of now.
        ignores_loss: whether the client may leave without anything being the worse for it.
        injected: what goes wrong with it on purpose, for this client alone.

    Attributes:
        sink: the client, as the body sees it.

    Raises:
        IncrementalRefused: see ``relay_for``.
    """

    def __init__(
        self,
        request: RequestHead,
        source: Source,
        fields: Fields,
        *,
        connection: Duplex,
        watch: Watch,
        config: ResponseSection,
        has_body: bool,
        passes_end: bool,
        closing: Callable[[], bool],
        ignores_loss: bool,
        injected: Injected,
    ) -> None:
        head = source.head
        head.fields = injected.response_fields(head.fields)
        if has_body:
            self._relaying = relay_for(request, source, config)
        else:
            head.fields = without_signals(head, config)
            self._relaying = Relaying(source, relay_at_once)
        self.sink = ClientBody(
            connection,
            ResponseHead(head.status, head.reason, [*head.fields, *injected.response_fields(fields)], head.version),
            watch,
            knows_chunks=request.is_http_11 and not passes_end,
            is_framed=head.status >= 200,
            has_body=has_body,
            length=self._relaying.source.length,
            closing=closing,
            ignores_loss=ignores_loss,
        )
        self._interim = interim_answers(injected.inject_1xx if request.is_http_11 else ())

    async def run(self) -> None:
        """Delivers it.

        Raises:
            Cut: it broke off.
            ConnectionLost: the client is gone.
        """
        await self.sink.precede(self._interim)
        await self._relaying.to(self.sink)
