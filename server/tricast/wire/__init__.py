"""Events to bytes and bytes to requests, without I/O: nothing here imports Trio, sockets or time."""
