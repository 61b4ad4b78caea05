"""What the services share: errors and health; in folders network, process, requests, telemetry and wire."""
