"""Which ways of choosing tokens are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsr_core
from fsr_core.budget import Budget
from fsr_core.compressor import Compressor, create

__all__ = ["ABLATIONS", "AUTO", "FULL", "REFERENCE", "Arm", "code_digest", "seeds_of"]

FULL = "full"
REFERENCE = "fsr"  # what every method is held against

# Group -> label -> options of FSR; as in the paper's figure 5, and the two options that later work asks for.
ABLATIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "evidence": {
        "saliency alone": {"alpha": 0.0},
        "relevance alone": {"beta": 0.0},
        "product (FSR)": {},
    },
    "stages": {
        "Focus only": {"rho": 1.0},
        "Focus + Scan": {"kappa": 0.0},
        "Focus + Scan + Refine (FSR)": {},
    },
    "kappa": {"kappa 0": {"kappa": 0.0}, "kappa 1 (FSR)": {}, "kappa 5": {"kappa": 5.0}},
    "rho": {
        "rho 0.5": {"rho": 0.5},
        "rho 0.7": {"rho": 0.7},
        "rho 0.9 (FSR)": {},
        "rho 0.95": {"rho": 0.95},
    },
    "sign of relevance": {"+ (FSR)": {}, "-": {"relevance_sign": "-"}},
    "keys": {"as they are (FSR)": {}, "centred": {"centre_keys": True}},
}

# Automatic budgets, from sparing to generous; each is held against the fixed budget of equal mean.
AUTO: Mapping[str, Budget] = {
    "auto, at most 16": Budget(auto=True, max_tokens=16),
    "auto, at most 48": Budget(auto=True, max_tokens=48),
}


@dataclass(frozen=True)
class Arm:
    """A method with its options at a budget; `budget` None keeps every token."""

    method: str
    budget: Budget | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def compressor(self) -> Compressor:
        """Raises ValueError for an unknown method or option."""
        return create(REFERENCE if self.method == FULL else self.method, **self.options)

    @property
    def key(self) -> str:
        """Equal for arms that do the same, whatever they are called."""
        budget = None if self.budget is None else asdict(self.budget)
        text = json.dumps([self.method, dict(self.options), budget], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def seeds_of(method: str, seeds: int) -> Sequence[Mapping[str, Any]]:
    """The options under which a method runs: once, or once a seed where it draws lots."""
    return [{"seed": seed} for seed in range(seeds)] if method == "random" else [{}]


def code_digest() -> str:
    """Of everything that decides what a method keeps; answers found under other code are not taken up again."""
    home, state = Path(fsr_core.__file__).parent, hashlib.sha256()
    for path in sorted([*home.glob("*.py"), *(home / "baselines").glob("*.py")]):
        state.update(path.read_bytes())
    return state.hexdigest()[:12]
