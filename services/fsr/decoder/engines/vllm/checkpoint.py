"""What vLLM is given of a checkpoint: the language model alone, in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import nn

from fsr_core.backbones import LanguageDecoder

__all__ = ["export", "refuse_multi_axis"]


def refuse_multi_axis(model: LanguageDecoder) -> None:
    """Raises ValueError for a language model whose positions vLLM cannot take beside embeddings."""
    rope = getattr(model.model.config, "rope_parameters", None) or {}
    if "mrope_section" in rope:
        raise ValueError(
            f"engine: vllm cannot take the multi-axis positions (M-RoPE) of {model.info.family} with embeddings;"
            " use --engine transformers"
        )


def export(model: LanguageDecoder, parent: Path) -> Path:
    """Writes the language model alone to a folder of `parent`, unless it is there, and drops its blocks here.

    The embeddings stay, for prompts.
    """
    folder = parent / f"{model.fingerprint[:16]}-{model.info.dtype}"
    if not folder.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=parent))
        model.model.save_pretrained(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another replica was faster
            shutil.rmtree(unfinished)
    model.model.model.layers = nn.ModuleList()
    model.model.lm_head = nn.Identity()
    return folder
