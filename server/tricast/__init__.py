"""Tricast: one ordered stream of events over long polling, Server-Sent Events and WebSocket."""

__version__ = "0.1.0"
