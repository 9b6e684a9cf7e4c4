"""The client: publish events to a server, and subscribe to them over whichever transport gets through.

Owns the other end of the contract: URLs, the three transports as a client sees them, falling back from one to
the next, reconnecting from the last position. Shares with the server what an event is, and nothing else.
"""

from tricast.client.failures import ClientError, Lost
from tricast.client.items import Connected, Disconnected, Item
from tricast.client.publishing import publish, publish_ndjson
from tricast.client.settings import ClientSettings
from tricast.client.subscription import Subscription, subscribe

__all__ = [
    "ClientError",
    "ClientSettings",
    "Connected",
    "Disconnected",
    "Item",
    "Lost",
    "Subscription",
    "publish",
    "publish_ndjson",
    "subscribe",
]
