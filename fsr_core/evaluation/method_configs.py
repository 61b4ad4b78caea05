"""What is compared: methods, each with options and a budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fsr_core.budget import Budget
from fsr_core.compressor import DEFAULT_METHOD, Compressor, create

__all__ = ["ABLATIONS", "AUTO_BUDGETS", "FULL", "OURS", "REFERENCE", "MethodConfig", "Run", "runs"]

FULL = "full"  # the name of the configuration that keeps every token
REFERENCE = DEFAULT_METHOD  # the method that all others are compared with
OURS = "fsr_volume"  # this project's own method, which all others are compared with over all sets together

# Method -> label -> options of a further run that is reported beside the method's defaults.
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "holov": {"holov, rule of its code": {"rule": "code"}},
    "cenprune": {"cenprune on divprune": {"selector": "divprune"}},
    "spare": {"spare, sign -": {"relevance_sign": "-"}},
}

# Group -> label -> options of FSR: those of the paper's figure 5, and two more options of FSR.
ABLATIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "evidence": {
        "saliency alone": {"alpha": 0.0},
        "relevance alone": {"alpha": 1.0, "beta": 0.0},
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

# Automatic budgets of FSR. Each is compared with the fixed budget of the same mean.
AUTO_BUDGETS: Mapping[str, Budget] = {
    "radius 0.4": Budget(auto=True, radius=0.4),
    "radius 0.3 (default)": Budget(auto=True),
    "radius 0.2": Budget(auto=True, radius=0.2),
}


@dataclass(frozen=True)
class MethodConfig:
    """A method with its options and a budget. With `budget` None every token is kept."""

    method: str
    budget: Budget | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def compressor(self) -> Compressor:
        """The method as a compressor. Raises ValueError for an unknown method or option."""
        return create(REFERENCE if self.method == FULL else self.method, **self.options)

    @property
    def key(self) -> str:
        """A hash that is equal for configurations that do the same."""
        budget = None if self.budget is None else asdict(self.budget)
        text = json.dumps([self.method, dict(self.options), budget], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """A line of a comparison: a method with its options; several options if it is asked several times, for seeds."""

    label: str
    method: str
    options: Sequence[Mapping[str, Any]] = ({},)

    def configs(self, budget: Budget) -> list[MethodConfig]:
        """One for each seed."""
        return [MethodConfig(self.method, budget, options) for options in self.options]


def runs(methods: Sequence[str], seeds: int) -> list[Run]:
    """What is compared of these methods: each with its defaults, random selection with each seed, and variants."""
    compared = []
    for method in methods:
        options = [{"seed": seed} for seed in range(seeds)] if method == "random" else [{}]
        compared.append(Run(method, method, options))
        compared += [Run(label, method, [changed]) for label, changed in VARIANTS.get(method, {}).items()]
    return compared
