"""Focus-Scan-Refine (arXiv 2602.05809) and what it needs, on tensors and Hugging Face models.

Names are loaded on first use, so that drawing a scene, for example, does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsr_core.budget import Budget
    from fsr_core.compressor import DEFAULT_METHOD, Compressor, create, methods, register
    from fsr_core.fsr import FSR
    from fsr_core.plug.compressed_model import compressed
    from fsr_core.tokens import FOCUS, SCAN, CompressedTokens, VisualTokens

__all__ = [
    "DEFAULT_METHOD",
    "FOCUS",
    "FSR",
    "SCAN",
    "Budget",
    "CompressedTokens",
    "Compressor",
    "VisualTokens",
    "compressed",
    "create",
    "methods",
    "register",
]

_MODULES = {
    "Budget": "budget",
    "Compressor": "compressor",
    "DEFAULT_METHOD": "compressor",
    "compressed": "plug",
    "create": "compressor",
    "methods": "compressor",
    "register": "compressor",
    "FSR": "fsr",
    "CompressedTokens": "tokens",
    "FOCUS": "tokens",
    "SCAN": "tokens",
    "VisualTokens": "tokens",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
