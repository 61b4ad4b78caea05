"""The embedded vision-language model `fsr-tiny`: its scenes, questions, training and weights.

Importing this package loads nothing heavy; `WEIGHTS` is where the checkpoint lies, in the hub's folder format.
"""

from pathlib import Path

__all__ = ["WEIGHTS"]

WEIGHTS = Path(__file__).parent / "weights"
