"""A checkpoint in the hub's folder format: finding it, and telling it from others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from fsr_core.backbones.checkpoints.weights import weight_files
from fsr_core.tiny import WEIGHTS

__all__ = ["Checkpoint", "checkpoint_name", "fingerprint", "read_json", "resolve"]

ALIASES = {"fsr-tiny": WEIGHTS}
_SAMPLE_BYTES = 4096
_PATTERNS = ["*.json", "*.jinja", "*.model", "*.txt"]
_SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
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
        folder = Path(snapshot_download(model, allow_patterns=[*_PATTERNS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # older checkpoints are published in PyTorch's format alone
            folder = Path(snapshot_download(model, allow_patterns=[*_PATTERNS, "pytorch_model*.bin"]))
    except Exception as error:  # the hub's client raises anything from HTTP errors to OSError
        raise ValueError(f"model: {model!r} cannot be fetched from the hub ({error}); use a local folder") from error
    return folder


def checkpoint_name(model: Any) -> str:
    """What a live model was loaded from, as far as it tells."""
    return str(getattr(model.config, "_name_or_path", "") or "")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is no such file. Raises ValueError where it is damaged."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"model: {path.name} is damaged ({error}); download it again") from error


def fingerprint(folder: Path) -> str:
    """Hex sha256 that two processes compare to know that they hold halves of the same checkpoint.

    Over the small files in full, and of each tensor its name, dtype, shape and first 4 KiB; so it is cheap for any
    size, and the same however the tensors are spread over safetensors files. Of PyTorch's own format, the size and
    both ends of each file: the last holds a checksum of every tensor. Raises ValueError where a file is damaged.
    """
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    tensors: dict[str, bytes] = {}
    for path in weight_files(folder):
        tensors.update(_ends(path) if path.suffix == ".bin" else _samples(path))
    for name in sorted(tensors):
        digest.update(tensors[name])
    return digest.hexdigest()


def _ends(path: Path) -> dict[str, bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_SAMPLE_BYTES)
        file.seek(max(0, size - 16 * _SAMPLE_BYTES))
        return {path.name: f"{path.name} {size}".encode() + first + file.read()}


def _samples(path: Path) -> dict[str, bytes]:
    samples = {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            for name, entry in json.loads(file.read(size)).items():
                if name == "__metadata__":
                    continue
                first, last = entry["data_offsets"]
                file.seek(8 + size + first)
                sample = file.read(min(_SAMPLE_BYTES, last - first))
                samples[name] = f"{name} {entry['dtype']} {entry['shape']}".encode() + sample
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"model: {path.name} is damaged ({error}); download it again") from error
    return samples


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder. `name` is what the user called it."""

    name: str
    folder: Path
    config: Any  # one of the library's configuration classes; which one is the family's business

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Raises ValueError where there is no such checkpoint or its config is damaged or of no known type."""
        folder = resolve(model)
        try:
            return cls(model, folder, AutoConfig.from_pretrained(folder))
        except Exception as error:  # the library raises OSError, ValueError, KeyError and validation errors here
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"model: the config.json of {model} cannot be read ({reason}); fix it") from error

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.folder)
