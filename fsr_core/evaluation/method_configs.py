"""Which ways of choosing tokens are compared."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from inspect import getfile
from pathlib import Path
from typing import Any

from fsr_core.budget import Budget
from fsr_core.compressor import Compressor, create

__all__ = ["ABLATIONS", "AUTO", "FULL", "REFERENCE", "MethodConfig", "code_digest", "path_digest", "seeds_of"]

CORE = Path(__file__).parents[1]
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

# Automatic budgets, which FSR has; each is held against its fixed budget of equal mean.
AUTO: Mapping[str, Budget] = {
    "radius 0.4": Budget(auto=True, radius=0.4),
    "radius 0.3 (default)": Budget(auto=True),
    "radius 0.2": Budget(auto=True, radius=0.2),
}


@dataclass(frozen=True)
class MethodConfig:
    """A method with its options at a budget; `budget` None keeps every token."""

    method: str
    budget: Budget | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def compressor(self) -> Compressor:
        """Raises ValueError for an unknown method or option."""
        return create(REFERENCE if self.method == FULL else self.method, **self.options)

    @property
    def key(self) -> str:
        """Equal for configs that do the same, whatever they are called."""
        budget = None if self.budget is None else asdict(self.budget)
        text = json.dumps([self.method, dict(self.options), budget], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def seeds_of(method: str, seeds: int) -> Sequence[Mapping[str, Any]]:
    """The options under which a method runs: once, or once a seed where it draws lots."""
    return [{"seed": seed} for seed in range(seeds)] if method == "random" else [{}]


@cache
def code_digest(kind: type[Compressor]) -> str:
    """Of a method's module and of what that imports from `fsr_core`; answers found under other code are asked anew.

    A third party's method is known by its file, by the whole package that holds it, and by all of `fsr_core`.
    """
    package = kind.__module__.partition(".")[0]
    if package != "fsr_core":
        top = getattr(sys.modules[package], "__file__", None)
        theirs = Path(top).parent.rglob("*.py") if top and Path(top).name == "__init__.py" else []
        return digest_of([Path(getfile(kind)), *theirs, *CORE.rglob("*.py")])
    waiting, seen, files = [kind.__module__], {"fsr_core.compressor"}, []
    while waiting:
        name = waiting.pop()
        spec = find_spec(name)
        if name in seen or spec is None or spec.origin is None:
            continue
        seen.add(name)
        files.append(Path(spec.origin))
        source = files[-1].read_bytes()
        waiting += sorted(found.decode() for found in re.findall(rb"^from (fsr_core[\w.]*) import", source, re.M))
    return digest_of(files)


def digest_of(files: Iterable[Path]) -> str:
    """Of the contents of some files, in whatever order they are named."""
    contents = sorted(hashlib.sha256(file.read_bytes()).digest() for file in set(files))
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


@cache
def path_digest() -> str:
    """Of everything between a question and its answer but the method: drawing, families, prompts, libraries."""
    parts = ("backbones/*.py", "tiny/scenes.py", "tiny/hard_sets.py", "tiny/questions.py", "evaluation/answers.py")
    files = [file for part in (*parts, "evaluation/question_sets.py") for file in CORE.glob(part)]
    versions = "-".join(version(name) for name in ("torch", "transformers", "pillow", "numpy"))
    return f"{digest_of(files)}-{hashlib.sha256(versions.encode()).hexdigest()[:6]}"
