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

from fsr_core.budget import Budget, BudgetLike
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["DEFAULT_METHOD", "ENTRY_POINTS", "Compressor", "create", "methods", "register"]

DEFAULT_METHOD = "fsr"  # the method of callers that name none
ENTRY_POINTS = "fsr_core.methods"  # group by which an installed package announces its own methods

# name -> module and class; the module is imported when the method is created.
_METHODS = {
    "fsr": "fsr_core.fsr:FSR",
    "fsr_volume": "fsr_core.volume:VolumeFSR",
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
    "anchorprune": "fsr_core.baselines.anchorprune:AnchorPrune",
    "cenprune": "fsr_core.baselines.cenprune:CenPrune",
    "spare": "fsr_core.baselines.spare:Spare",
}
_REGISTERED: dict[str, type[Compressor]] = {}


class Compressor(ABC):
    """Keeps some of a sample's visual tokens. Subclasses are frozen dataclasses; their fields are their options."""

    name: ClassVar[str]

    def compress(self, sample: VisualTokens, budget: BudgetLike) -> CompressedTokens:
        """Keeps as many tokens of a sample as `budget` allows. Raises ValueError for a budget below one token."""
        return self.compress_batch([sample], [budget])[0]

    @abstractmethod
    def compress_batch(self, samples: Sequence[VisualTokens], budgets: Sequence[BudgetLike]) -> list[CompressedTokens]:
        """One result per sample, token for token the same as `compress` gives. Sizes and budgets may differ."""

    def comparisons(self, tokens: int, budget: Budget) -> int:
        """About how many pairs of tokens it compares at most in a sample of so many tokens.

        A service bounds the cost of a request by it, before the request runs.

        By default every token with every kept one.
        """
        limits = budget.limits(tokens)
        return 0 if limits.minimum == tokens else tokens * limits.maximum


def as_budgets(samples: Sequence[VisualTokens], budgets: Sequence[BudgetLike]) -> list[Budget]:
    """The budgets as `Budget`s. Raises ValueError if there is not one for each sample."""
    if len(samples) != len(budgets):
        raise ValueError(f"budgets: {len(budgets)} given for {len(samples)} samples; pass one per sample")
    return [Budget.of(budget) for budget in budgets]


def register(name: str, method: type[Compressor]) -> None:
    """Adds a method to this process. Afterwards `create(name)` makes it, in every place that takes a method's name.

    A service loads its methods in its own process. Announce them there by an entry point of the group
    `fsr_core.methods` (name = "package.module:Class") in the package that holds them.

    Raises ValueError if the name is taken or is not a lower-case identifier, or if the class is not a dataclass that
    extends `Compressor`. Registering the same class under the same name again changes nothing.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name: {name!r} is not a method name; use lower-case letters, digits and underscores")
    if _REGISTERED.get(name) is method:
        return
    if name in methods():
        raise ValueError(f"name: there is already a method {name!r}; choose another name")
    _REGISTERED[name] = _method_class(name, method)


def methods() -> tuple[str, ...]:
    """Names that `create` knows: built-in methods, those of installed packages, those registered in this process."""
    return (*_METHODS, *_announced(), *_REGISTERED)


def create(name: str, **options: Any) -> Compressor:
    """A method by name. Raises ValueError with the list of known ones for an unknown name or option."""
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
        built_in: type[Compressor] = getattr(import_module(module), kind)
        return built_in
    return _REGISTERED[name] if name in _REGISTERED else _loaded(name)


@cache
def _announced() -> dict[str, EntryPoint]:
    """Entry points by name, read once per process. One with the name of a built-in method is ignored with a warning."""
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    for name in set(points) & set(_METHODS):
        message = f"{points.pop(name).value} announces a method {name!r}, which is built in; it is ignored"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return points


@cache
def _loaded(name: str) -> type[Compressor]:
    point = _announced()[name]
    try:
        return _method_class(name, point.load())
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"method: {name!r} ({point.value}) cannot be loaded: {error}; reinstall its package"
        ) from error


def _method_class(name: str, method: object) -> type[Compressor]:
    """`method` as a method's class. Raises ValueError if it is none."""
    if not (isinstance(method, type) and issubclass(method, Compressor) and is_dataclass(method)):
        raise ValueError(f"method: {name!r} is not a dataclass that extends Compressor, got {method!r}")
    return method
