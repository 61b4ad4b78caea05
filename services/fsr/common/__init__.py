"""What the services share: errors, settings, limits, tensors in messages, logs, health, the life of a process."""
