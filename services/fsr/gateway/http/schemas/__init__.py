"""What HTTP requests and responses look like."""
