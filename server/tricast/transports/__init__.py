"""The three transports: one coroutine per kind of subscriber."""
