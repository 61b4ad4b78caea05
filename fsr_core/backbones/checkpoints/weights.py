"""Loading part of a checkpoint: the tensors that one half needs, from safetensors or from PyTorch's own format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["Placement", "load_half", "materialise", "part_of", "weight_files"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and dtype of a half's weights, and its attention implementation by its name in the library."""

    device: torch.device
    dtype: torch.dtype
    attention: str = "sdpa"


# Published checkpoints name the same tensors in several ways: with or without a leading "model.", the head inside or
# outside the language model, the vision tower with or without a wrapper.
_PARTS = (
    ("vision", re.compile(r"^(?:model\.)?(?:vision_tower|visual|vision_model)\.(?:vision_model\.)?(.+)$")),
    ("projector", re.compile(r"^(?:model\.)?(?:multi_modal_projector|connector)\.(.+)$")),
    ("newline", re.compile(r"^(?:model\.)?(image_newline)$")),
    ("head", re.compile(r"^(?:language_model\.)?lm_head\.(.+)$")),
    ("language", re.compile(r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(.+)$")),
    ("language", re.compile(r"^model\.((?:embed_tokens|layers|norm)\..+)$")),
)


def part_of(stored: str) -> tuple[str, str] | None:
    """The part of a vision-language model that a stored tensor belongs to, and the tensor's name in that part.

    Parts are ``vision``, ``projector``, ``newline``, ``language`` and ``head``; None for anything else.
    """
    for part, pattern in _PARTS:
        match = pattern.match(stored)
        if match:
            return part, match[1]
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files with a checkpoint's tensors: those that an index names, else every safetensors file, else PyTorch's
    ``pytorch_model*.bin``.

    Raises ValueError if there are none, or if a file that the index names is missing.
    """
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if index.is_file():
            names = sorted(set(_weight_map(index).values()))
            lacking = [name for name in names if not (folder / name).is_file()]
            if lacking:
                raise ValueError(f"model: {folder.name} lacks {lacking[0]}, which its index names; download it again")
            return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ValueError(f"model: {folder.name} holds no weights; save the checkpoint with save_pretrained")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model: {index.name} is damaged ({error}); download it again") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Iterable[str], Callable[[str], Tensor]]]:
    """The names in a file, and a function that reads a tensor. Raises ValueError, naming the file, if it is damaged."""
    try:
        if path.suffix == ".bin":
            # weights_only refuses everything but tensors and plain containers, so the file cannot run code.
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # written before PyTorch's zip format; only that format can be mapped
                state = torch.load(path, map_location="cpu", weights_only=True)
            yield state.keys(), state.__getitem__
        else:
            with safe_open(path, framework="pt") as file:
                yield file.keys(), file.get_tensor
    except torch.OutOfMemoryError:  # the device is too small; the file is sound
        raise
    except UnpicklingError as error:
        raise ValueError(
            f"model: {path.name} is damaged or holds more than tensors, which is not loaded for safety; download it"
            " again, or convert it with save_pretrained if you trust it"
        ) from error
    except (SafetensorError, OSError, EOFError, RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(f"model: {path.name} is damaged ({_first_line(error)}); download it again") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_tensors(folder: Path, rename: Callable[[str], str | None], place: Placement) -> dict[str, Tensor]:
    """The tensors for which ``rename`` gives a name, by that name.

    If there is an index, files without such tensors are not opened. Raises ValueError if there are no weights or a file
    is damaged.
    """
    index = folder / "model.safetensors.index.json"
    needed = None
    if index.is_file():
        needed = {file for stored, file in _weight_map(index).items() if rename(stored) is not None}
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        if needed is not None and path.name not in needed:
            continue
        with _opened(path) as (names, read):
            for stored in names:
                name = rename(stored)
                if name is not None:
                    tensors[name] = read(stored).to(device=place.device, dtype=place.dtype)
    return tensors


def load_half(folder: Path, parts: Iterable[str], place: Placement, vision_blocks: int | None = None) -> dict[str, Any]:
    """The tensors of the named parts (see :func:`part_of`), one dict per part; of the vision tower only the first
    `vision_blocks` blocks, if given."""
    names = set(parts)

    def rename(stored: str) -> str | None:
        place_in_model = part_of(stored)
        if place_in_model is None or place_in_model[0] not in names:
            return None
        part, leaf = place_in_model
        beyond = vision_blocks is not None and part == "vision" and _block(leaf) >= vision_blocks
        return None if beyond else f"{part}/{leaf}"

    halves: dict[str, dict[str, Tensor]] = {part: {} for part in names}
    for name, tensor in read_tensors(folder, rename, place).items():
        part, _, leaf = name.partition("/")
        halves[part][leaf] = tensor
    return halves


def materialise(
    build: Callable[[Any], Any], config: Any, tensors: Mapping[str, Tensor], device: torch.device, what: str = "half"
) -> Any:
    """A module whose parameters are `tensors` themselves; no parameter is initialised first.

    Raises ValueError, naming `what`, if the tensors do not fit the configuration.
    """
    if not tensors:
        raise ValueError(f"model: the checkpoint holds no {what}; point at a whole vision-language checkpoint")
    with torch.device("meta"):
        module = build(config)
    # Buffers such as rotary frequencies are not in the files. They depend on neither depth nor vocabulary, so a model
    # of the same configuration without blocks has them too.
    buffers = dict(build(_shallow(config)).named_buffers())
    names = {name for name, _ in module.named_parameters()}
    prefix = next((p for p in ("vision_model.", "text_model.") if any(n.startswith(p) for n in names)), "")
    state = {prefix + n: t for n, t in tensors.items() if not n.endswith("position_ids")}
    try:
        missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:  # a tensor has another shape than the configuration says
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"model: the checkpoint's {what} does not fit its config.json ({reason}); fix it") from error
    lacking = sorted(set(missing) - set(buffers))
    if lacking or unexpected:
        which = f"lacks {lacking[0]}" if lacking else f"has {unexpected[0]}, which the configuration does not know"
        raise ValueError(f"model: the checkpoint's {what} {which}; download it again, or fix its config.json")
    for name, tensor in module.state_dict().items():
        if tensor.is_meta and name not in buffers and device.type != "meta":
            raise ValueError(f"model: the checkpoint's {what} lacks {name}; download it again")
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_buffer(leaf, buffer.to(device), persistent=False)
    return module.eval().requires_grad_(False)


def _block(name: str) -> int:
    match = re.match(r"(?:encoder\.)?(?:layers?|blocks)\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _shallow(config: Any) -> Any:
    """The same configuration without blocks and with a tiny vocabulary."""
    shallow = deepcopy(config)
    for depth in ("num_hidden_layers", "depth"):
        if hasattr(shallow, depth):
            setattr(shallow, depth, 0)
    if hasattr(shallow, "vocab_size"):
        shallow.vocab_size, shallow.pad_token_id = 8, None
    if hasattr(shallow, "deepstack_visual_indexes"):
        shallow.deepstack_visual_indexes = []
    return shallow
