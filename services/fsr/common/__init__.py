"""What the services share: errors and health, and in rooms of their own network, process, requests, telemetry and wire."""
