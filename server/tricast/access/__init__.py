"""Who may do what: tokens, keys and rules. Knows nothing of HTTP, WebSocket and connections."""
