"""Trains `fsr-tiny`: `python -m fsr_core.tiny.training`."""
