"""The endpoints that help ``tricast probe``: the half of a measurement that only the server's end can make.

Off unless ``probe.token`` is configured. What is remembered, how long anything lasts and how much is sent are bounded.
"""
