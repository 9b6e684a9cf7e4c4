"""Finds out what stands between a client and a server, and what it does to long polling, event streams and WebSockets.

Measuring (``wire``, ``timers``…) and judging are apart: what is judged from numbers alone does no I/O.
"""
