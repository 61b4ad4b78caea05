"""A checkpoint in the hub's folder format: where it is, and its fingerprint."""

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
    """The folder of a model: the embedded `fsr-tiny`, a local folder, or the download of a hub id.

    Raises ValueError with a remedy if there is no such checkpoint.
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
    from huggingface_hub import snapshot_download  # slow to import, and only a hub id needs it

    try:
        folder = Path(snapshot_download(model, allow_patterns=[*_PATTERNS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # some older checkpoints have PyTorch's format only
            folder = Path(snapshot_download(model, allow_patterns=[*_PATTERNS, "pytorch_model*.bin"]))
    except Exception as error:  # the hub's client raises many kinds, from HTTP errors to OSError
        if isinstance(error, OSError) and error.filename is not None:
            reason = f"{error.filename}: {error.strerror}"
            raise ValueError(
                f"model: {model!r} cannot be stored ({reason}); set HF_HOME to a folder that can be written"
            ) from error
        raise ValueError(f"model: {model!r} cannot be fetched from the hub ({error}); use a local folder") from error
    return folder


def checkpoint_name(model: Any) -> str:
    """The folder or hub id that a live model was loaded from; empty if it does not say."""
    return str(getattr(model.config, "_name_or_path", "") or "")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one if there is no such file. Raises ValueError if the file is damaged."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"model: {path.name} is damaged ({error}); download it again") from error


def fingerprint(folder: Path) -> str:
    """Hex sha256 by which two processes know that they hold halves of the same checkpoint.

    It covers the small files in full, and name, dtype, shape and first 4 KiB of each tensor. So it is cheap for any
    size, and does not depend on how tensors are spread over safetensors files. Of a file in PyTorch's own format it
    covers the size and both ends; the end holds a checksum of every tensor. Raises ValueError if a file is damaged.
    """
    digest = hashlib.sha256()
    templates = sorted(path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*.jinja"))
    for name in (*_SMALL_FILES, *templates):
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
    config: Any  # a configuration class of the library; which one depends on the family

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Finds a checkpoint. Raises ValueError if there is none, or its config is damaged or of an unknown type."""
        folder = resolve(model)
        try:
            return cls(model, folder, AutoConfig.from_pretrained(folder))
        except Exception as error:  # the library raises OSError, ValueError, KeyError and validation errors
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"model: the config.json of {model} cannot be read ({reason}); fix it") from error

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.folder)
