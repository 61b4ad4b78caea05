"""Bounds on what a request may ask for that gateway and decoder both hold."""

from __future__ import annotations

__all__ = ["MAX_STOPS", "MAX_STOP_CHARACTERS", "SMALLEST_DIVISOR"]

MAX_STOPS = 16  # stop strings of a request
MAX_STOP_CHARACTERS = 256  # of each: a decoder compares the end of the answer with it at every token
# Of temperature and repetition penalty: smaller ones overflow logits. Just below 1e-6, which no float holds exactly.
SMALLEST_DIVISOR = 2.0**-20
