"""The training of `fsr-tiny`: `python -m fsr_core.tiny.training`."""
