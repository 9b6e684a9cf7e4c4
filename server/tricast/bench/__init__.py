"""A load generator for users: many subscribers, a steady feed, and whether everything came, in order and how soon.

The coordinator is a Trio task tree; the subscribers and the publishers are processes of their own, each of them an
epoll loop without Trio, so that what is measured is the server and not the one who measures.

Knows a server from outside only: by its URLs and its wire formats.
"""
