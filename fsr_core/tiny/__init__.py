"""The embedded vision-language model `fsr-tiny`: its scenes, questions, test sets, training and weights.

The import of this package loads neither torch nor transformers. `WEIGHTS` is the checkpoint's folder, in the hub's
format.

`python -m fsr_core.tiny` draws a scene; `python -m fsr_core.tiny.training` trains the model.
"""

from pathlib import Path

__all__ = ["WEIGHTS"]

WEIGHTS = Path(__file__).parent / "weights"
