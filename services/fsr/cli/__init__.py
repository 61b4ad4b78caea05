"""The `fsr` command."""
