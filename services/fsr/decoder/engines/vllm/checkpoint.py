"""The part of a checkpoint that vLLM gets: the language model alone, in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from torch import nn

from fsr_core.backbones import LanguageDecoder

__all__ = ["export", "refuse_multi_axis"]


def refuse_multi_axis(model: LanguageDecoder) -> None:
    """Raises ValueError if vLLM cannot take the model's positions together with embeddings."""
    rope = getattr(model.model.config, "rope_parameters", None) or {}
    if "mrope_section" in rope:
        raise ValueError(
            f"engine: vllm cannot take the multi-axis positions (M-RoPE) of {model.info.family} with embeddings;"
            " use --engine transformers"
        )


def export(model: LanguageDecoder, parent: Path) -> Path:
    """Writes the language model to a folder in `parent`, unless the folder exists, and returns the folder.

    The model in this process then loses its blocks and its head. Its embeddings stay, because prompts need them.
    """
    folder = parent / f"{model.fingerprint[:16]}-{model.info.dtype}"
    if not folder.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=parent))
        model.model.save_pretrained(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another replica has written it meanwhile
            shutil.rmtree(unfinished)
    model.model.model.layers = nn.ModuleList()
    model.model.lm_head = nn.Identity()
    return folder
