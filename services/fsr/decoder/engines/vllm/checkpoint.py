"""The part of a checkpoint that vLLM gets: the language model alone, in a folder of its own."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import nn

from fsr.decoder.engines.vllm.families import MULTI_AXIS, is_multi_axis
from fsr.decoder.engines.vllm.plugin import ARCHITECTURE
from fsr_core.backbones import LanguageDecoder

__all__ = ["export"]


def export(model: LanguageDecoder, parent: Path) -> Path:
    """Writes the language model to a folder in `parent`, unless the folder exists, and returns the folder.

    The model in this process then loses its blocks and its head. Its embeddings stay, because prompts need them.
    """
    folder = parent / f"{model.fingerprint[:16]}-{model.info.dtype}"
    if not folder.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=parent))
        if is_multi_axis(model.model.config):
            _save_multi_axis(model, unfinished)
        else:
            model.model.save_pretrained(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another replica has written it meanwhile
            shutil.rmtree(unfinished)
    model.model.model.layers = nn.ModuleList()
    model.model.lm_head = nn.Identity()
    return folder


def _save_multi_axis(model: LanguageDecoder, folder: Path) -> None:
    """Weights, and a configuration from which vLLM builds our model class."""
    config: Any = copy.deepcopy(model.model.config)
    tensors = model.model.state_dict()
    tied = model.model.lm_head.weight is model.model.get_input_embeddings().weight
    if tied:
        del tensors["lm_head.weight"]
    config.tie_word_embeddings = tied
    config.architectures = [ARCHITECTURE]
    config.dtype = model.dtype
    config.rope_parameters["mrope_interleaved"] = MULTI_AXIS[config.model_type].interleaved
    # The width of a row at vLLM's input: the embedding, and beside it what the first blocks add (DeepStack). It is the
    # only field from which vLLM takes a width other than the hidden size.
    config.projection_dim = config.hidden_size * (1 + getattr(model, "deepstack_layers", 0))
    save_torch_state_dict(tensors, folder)
    config.save_pretrained(folder)
