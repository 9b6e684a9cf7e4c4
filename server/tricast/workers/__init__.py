"""A server of several processes: one supervises the others, which share its port.

Each worker has a number and, by that, listening sockets that the supervisor opened and keeps open: the kernel spreads
connections over them (SO_REUSEPORT). So a worker that is replaced leaves nobody waiting: its sockets stay, and while
nobody has its number another worker accepts from them. What workers share beside that are the log and the boards on
which they leave their numbers for the metrics.
"""
