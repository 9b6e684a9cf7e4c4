"""Real Redis, Valkey and Kafka servers on free ports of 127.0.0.1: for ``scripts/services``, and for the tests."""
