"""The logs: what gives events their order and keeps them for those who come back."""
