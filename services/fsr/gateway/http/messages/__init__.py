"""From HTTP requests to the gateway's messages, and from these to HTTP responses."""
