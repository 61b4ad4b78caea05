"""How much KV memory a replica may use, and how much of a GPU an engine may count on."""

from __future__ import annotations

import torch

from fsr.decoder.settings import DecoderSettings

__all__ = ["free_share", "kv_budget"]

_CPU_BYTES = 2**30
_GPU_SHARE = 0.8
_MOST_OF_GPU = 0.9
_MARGIN = 0.05  # of the GPU, for what each further process takes by itself


def kv_budget(settings: DecoderSettings, weights_to_load: int = 0) -> int:
    """Bytes: what `--kv-memory` says, else what suits the device.

    Args:
        weights_to_load: bytes of weights that still have to fit into the device's memory.
    """
    if settings.kv_memory is not None:
        return int(settings.kv_memory)
    device = torch.device(settings.device)
    if device.type == "cuda":
        return int(max(0, torch.cuda.mem_get_info(device)[0] - weights_to_load) * _GPU_SHARE)
    return _CPU_BYTES


def free_share(settings: DecoderSettings) -> float | None:
    """Share of the GPU's memory that an engine in another process can count on, at most 0.9; None on other devices."""
    device = torch.device(settings.device)
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return max(0.01, min(_MOST_OF_GPU, free / total - _MARGIN))
