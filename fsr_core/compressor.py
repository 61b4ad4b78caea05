"""The interface of every compression method, and the table of methods by name."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from fsr_core.budget import Budget
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["DEFAULT_METHOD", "ENTRY_POINTS", "Compressor", "create", "methods", "register"]

DEFAULT_METHOD = "fsr"  # what callers get who name no method
ENTRY_POINTS = "fsr_core.methods"  # group in which an installed package announces methods of its own

# name -> where its class lives; loaded when it is asked for.
_METHODS = {
    "fsr": "fsr_core.fsr:FSR",
    "fsr_guided": "fsr_core.guided:GuidedFSR",
    "random": "fsr_core.baselines.random:Random",
    "uniform": "fsr_core.baselines.uniform:Uniform",
    "cls_topk": "fsr_core.baselines.cls_topk:ClsTopK",
    "visionzip": "fsr_core.baselines.visionzip:VisionZip",
    "prumerge": "fsr_core.baselines.prumerge:PruMerge",
    "vispruner": "fsr_core.baselines.vispruner:VisPruner",
    "divprune": "fsr_core.baselines.divprune:DivPrune",
    "cdpruner": "fsr_core.baselines.cdpruner:CDPruner",
    "dart": "fsr_core.baselines.dart:Dart",
    "holov": "fsr_core.baselines.holov:HoloV",
    "scope": "fsr_core.baselines.scope:Scope",
}
_REGISTERED: dict[str, type[Compressor]] = {}


class Compressor(ABC):
    """Keeps some of a sample's visual tokens. Subclasses are frozen dataclasses whose fields are their options."""

    name: ClassVar[str]

    def compress(self, sample: VisualTokens, budget: int | Budget) -> CompressedTokens:
        """Keeps what `budget` allows of one sample. Raises ValueError for a budget below one token."""
        return self.compress_batch([sample], [budget])[0]

    @abstractmethod
    def compress_batch(
        self, samples: Sequence[VisualTokens], budgets: Sequence[int | Budget]
    ) -> list[CompressedTokens]:
        """One result a sample, token for token what `compress` gives for it alone. Sizes and budgets may differ."""


def as_budgets(samples: Sequence[VisualTokens], budgets: Sequence[int | Budget]) -> list[Budget]:
    """The budgets as `Budget`s; ValueError where their number is not that of the samples."""
    if len(samples) != len(budgets):
        raise ValueError(f"budgets: {len(budgets)} given for {len(samples)} samples; pass one a sample")
    return [Budget.of(budget) for budget in budgets]


def register(name: str, method: type[Compressor]) -> None:
    """Adds a method of one's own to this process: afterwards `create(name)` makes it, wherever names are taken.

    A service loads its methods in its own process: announce them to it by an entry point of the group
    `fsr_core.methods` (name = "package.module:Class") in the package that holds them.

    Raises ValueError for a name that is taken or is no lower-case identifier, or a class that is no dataclass
    extending `Compressor`. Registering the same class under the same name again changes nothing.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name: {name!r} is no method name; use lower-case letters, digits and underscores")
    if _REGISTERED.get(name) is method:
        return
    if name in methods():
        raise ValueError(f"name: a method {name!r} is there already; choose another name")
    _REGISTERED[name] = _checked(name, method)


def methods() -> tuple[str, ...]:
    """Names that `create` knows: ours, those of installed packages, those registered in this process."""
    return (*_METHODS, *_announced(), *_REGISTERED)


def create(name: str, **options: Any) -> Compressor:
    """A method by name. Raises ValueError, listing what there is, for an unknown name or option."""
    if name not in methods():
        raise ValueError(f"method: {name!r} is unknown; choose one of {', '.join(methods())}")
    kind = _class_of(name)
    known = [field.name for field in fields(kind) if field.init]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        listed = ", ".join(known) if known else "none"
        raise ValueError(f"method.options: {name} has no option {unknown[0]!r}; its options are: {listed}")
    return kind(**options)


def _class_of(name: str) -> type[Compressor]:
    if name in _METHODS:
        module, _, kind = _METHODS[name].partition(":")
        ours: type[Compressor] = getattr(import_module(module), kind)
        return ours
    return _REGISTERED[name] if name in _REGISTERED else _loaded(name)


@cache
def _announced() -> dict[str, EntryPoint]:
    """Entry points by name, looked up once a process. One that takes a name of ours is left out, with a warning."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    for name in set(found) & set(_METHODS):
        message = f"{found.pop(name).value} announces a method {name!r}, which is there already; it is left out"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return found


@cache
def _loaded(name: str) -> type[Compressor]:
    point = _announced()[name]
    try:
        return _checked(name, point.load())
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"method: {name!r} ({point.value}) cannot be loaded: {error}; reinstall its package"
        ) from error


def _checked(name: str, method: object) -> type[Compressor]:
    if not (isinstance(method, type) and issubclass(method, Compressor) and is_dataclass(method)):
        raise ValueError(f"method: {name!r} is no dataclass that extends Compressor, got {method!r}")
    return method
