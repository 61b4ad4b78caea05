"""What gateway, encoder and decoder share: errors, settings, tensors on the wire, logs, health."""
