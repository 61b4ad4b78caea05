"""How much KV memory a replica may use, and how much of a GPU is free."""

from __future__ import annotations

import torch

from fsr.decoder.settings import DecoderSettings

__all__ = ["free_share", "kv_budget"]

_CPU_BYTES = 2**30
_GPU_SHARE = 0.8


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
    """Share of the GPU's memory that is free, rounded down to hundredths; None on other devices."""
    device = torch.device(settings.device)
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return free * 100 // total / 100
