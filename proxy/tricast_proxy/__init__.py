"""The reverse proxy that ships with Tricast."""
