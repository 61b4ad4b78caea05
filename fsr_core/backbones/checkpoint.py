"""A checkpoint in the hub's folder format: finding it, telling it from others, reading some of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from fsr_core.tiny import WEIGHTS

__all__ = ["Checkpoint", "fingerprint", "materialise", "resolve"]

ALIASES = {"fsr-tiny": WEIGHTS}
_SAMPLE_BYTES = 4096
_SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def resolve(model: str) -> Path:
    """The folder of a model: the embedded `fsr-tiny`, a local folder, else a hub id, which is downloaded.

    Raises ValueError, saying what to do, where there is no such checkpoint.
    """
    if model in ALIASES:
        return ALIASES[model]
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model: {model} has no config.json; point at a folder that save_pretrained wrote")
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ValueError(f"model: {model!r} is neither a folder nor a hub id (owner/name) nor {', '.join(ALIASES)}")
    from huggingface_hub import snapshot_download  # only a hub id needs it

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.jinja", "*.model", "*.safetensors"]))
    except Exception as error:  # the hub's client raises anything from HTTP errors to OSError
        raise ValueError(f"model: {model!r} cannot be fetched from the hub ({error}); use a local folder") from error


def fingerprint(folder: Path) -> str:
    """Hex sha256 that two processes compare to know that they hold halves of the same checkpoint.

    Over the small files in full, and of each tensor its name, dtype, shape and first 4 KiB; so it is cheap for any
    size, and the same however the tensors are spread over files.
    """
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    tensors: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                first, last = entry["data_offsets"]
                file.seek(8 + size + first)
                sample = file.read(min(_SAMPLE_BYTES, last - first))
                tensors[name] = f"{name} {entry['dtype']} {entry['shape']}".encode() + sample
    for name in sorted(tensors):
        digest.update(tensors[name])
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder. `name` is what the user called it."""

    name: str
    folder: Path
    config: Any  # one of the library's configuration classes; which one is the family's business

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        folder = resolve(model)
        return cls(model, folder, AutoConfig.from_pretrained(folder))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.folder)

    def tensors(
        self, rename: Callable[[str], str | None], dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """Reads only the tensors for which `rename` gives a name. Raises ValueError where there are no safetensors."""
        found: dict[str, Tensor] = {}
        paths = sorted(self.folder.glob("*.safetensors"))
        if not paths:
            raise ValueError(
                f"model: {self.folder.name} holds no safetensors; save the checkpoint with save_pretrained"
            )
        for path in paths:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    name = rename(stored)
                    if name is not None:
                        found[name] = file.get_tensor(stored).to(device=device, dtype=dtype)
        return found


def materialise(
    build: Callable[[Any], Any],
    config: Any,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> Any:
    """A module whose parameters are `tensors` themselves: nothing is initialised that a file will overwrite.

    Raises ValueError where the tensors are not those that the configuration asks for.
    """
    with torch.device("meta"):
        module = build(config)
    # Buffers such as rotary frequencies are in no file. They depend on neither depth nor vocabulary, so an empty
    # model of the same configuration has them.
    shallow = deepcopy(config)
    shallow.num_hidden_layers = 0
    if hasattr(shallow, "vocab_size"):
        shallow.vocab_size, shallow.pad_token_id = 8, None
    buffers = dict(build(shallow).named_buffers())
    prefix = "vision_model." if any(name.startswith("vision_model.") for name, _ in module.named_parameters()) else ""
    prefix = "text_model." if any(name.startswith("text_model.") for name, _ in module.named_parameters()) else prefix
    state = {prefix + name: tensor for name, tensor in tensors.items()}
    missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    lacking = sorted(set(missing) - set(buffers))
    if lacking or unexpected:
        what = f"lacks {lacking[0]}" if lacking else f"has {unexpected[0]}, which the configuration does not know"
        raise ValueError(f"model: the checkpoint {what}; download it again, or fix its config.json")
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_buffer(leaf, buffer.to(device), persistent=False)
    return module.eval().requires_grad_(False)
