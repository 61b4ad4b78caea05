"""What happens around a request: its connection, limits, id, and its stream of events."""
