"""The servers that Tricast is measured beside, each behind the same small interface (see `peers.base`)."""

from peers.base import Peer
from peers.tricast import Tricast

#: In the order of the tables.
PEERS: tuple[Peer, ...] = (Tricast(),)
