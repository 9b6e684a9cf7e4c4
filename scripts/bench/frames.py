"""As much of WebSocket (RFC 6455) as a client needs that only counts what comes."""

import socket

from peers.base import websocket_frame

_PING = 0x89
_PONG_OPCODE = 0xA


def find_pings(data: bytes) -> list[bytes]:
    """Returns the payloads of the pings in this, which begins with a frame; a frame that is cut off ends the search."""
    pings = []
    position = 0
    while position + 2 <= len(data):
        first, length = data[position], data[position + 1]
        position += 2
        if length == 126:
            length = int.from_bytes(data[position : position + 2], "big")
            position += 2
        elif length == 127:
            length = int.from_bytes(data[position : position + 8], "big")
            position += 8
        if first == _PING and position + length <= len(data):
            pings.append(data[position : position + length])
        position += length
    return pings


def answer_pings(sock: socket.socket, data: bytes) -> None:
    """Sends a pong for each ping in what was received (RFC 6455 5.5.3)."""
    for payload in find_pings(data):
        sock.send(websocket_frame(payload, opcode=_PONG_OPCODE))
