"""The methods, options and budgets that are compared."""

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
REFERENCE = "fsr"  # every method is compared with it

# Group -> label -> options of FSR. They are those of the paper's figure 5, and two options that later work uses.
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

# Automatic budgets of FSR. Each is compared with the fixed budget of equal mean.
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
        """A hash of method, options and budget: equal configs have equal keys."""
        budget = None if self.budget is None else asdict(self.budget)
        text = json.dumps([self.method, dict(self.options), budget], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def seeds_of(method: str, seeds: int) -> Sequence[Mapping[str, Any]]:
    """The options of each run of a method: one run, or one for each seed if the method is random."""
    return [{"seed": seed} for seed in range(seeds)] if method == "random" else [{}]


@cache
def code_digest(kind: type[Compressor]) -> str:
    """Hash of a method's module and of all that it imports from `fsr_core`. Answers of other code are not reused.

    For a third party's method it is the hash of its file, of the whole package that holds it, and of all of `fsr_core`.
    """
    package = kind.__module__.partition(".")[0]
    if package != "fsr_core":
        package_file = getattr(sys.modules[package], "__file__", None)
        package_files = (
            Path(package_file).parent.rglob("*.py") if package_file and Path(package_file).name == "__init__.py" else []
        )
        return digest_of([Path(getfile(kind)), *package_files, *CORE.rglob("*.py")])
    waiting, visited, files = [kind.__module__], {"fsr_core.compressor"}, []
    while waiting:
        name = waiting.pop()
        spec = find_spec(name)
        if name in visited or spec is None or spec.origin is None:
            continue
        visited.add(name)
        files.append(Path(spec.origin))
        source = files[-1].read_bytes()
        waiting += sorted(module.decode() for module in re.findall(rb"^from (fsr_core[\w.]*) import", source, re.M))
    return digest_of(files)


def digest_of(files: Iterable[Path]) -> str:
    """Hash of the contents of files; their order does not matter."""
    contents = sorted(hashlib.sha256(file.read_bytes()).digest() for file in set(files))
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


@cache
def path_digest() -> str:
    """Hash of all code between a question and its answer except the method: drawing, families, prompts, libraries."""
    parts = ("backbones/*.py", "tiny/scenes.py", "tiny/hard_sets.py", "tiny/questions.py", "evaluation/answers.py")
    files = [file for part in (*parts, "evaluation/question_sets.py") for file in CORE.glob(part)]
    versions = "-".join(version(name) for name in ("torch", "transformers", "pillow", "numpy"))
    return f"{digest_of(files)}-{hashlib.sha256(versions.encode()).hexdigest()[:6]}"
