"""The interface of every compression method, and the table of methods by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any, ClassVar

from fsr_core.budget import Budget
from fsr_core.tokens import CompressedTokens, VisualTokens

__all__ = ["Compressor", "create", "methods"]

# name -> where its class lives; loaded when it is asked for.
_METHODS = {"fsr": "fsr_core.fsr:FSR", "random": "fsr_core.baselines.random:Random"}


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


def check_batch(samples: Sequence[VisualTokens], budgets: Sequence[int | Budget]) -> list[Budget]:
    """The budgets as `Budget`s; ValueError where their number is not that of the samples."""
    if len(samples) != len(budgets):
        raise ValueError(f"budgets: {len(budgets)} given for {len(samples)} samples; pass one a sample")
    return [Budget.of(budget) for budget in budgets]


def methods() -> tuple[str, ...]:
    """Names that `create` knows."""
    return tuple(_METHODS)


def create(name: str, **options: Any) -> Compressor:
    """A method by name. Raises ValueError, listing what there is, for an unknown name or option."""
    if name not in _METHODS:
        raise ValueError(f"method: {name!r} is unknown; choose one of {', '.join(_METHODS)}")
    module, _, kind = _METHODS[name].partition(":")
    factory = getattr(import_module(module), kind)
    known = [field.name for field in fields(factory)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"method.options: {name} has no option {unknown[0]!r}; its options are {', '.join(known)}")
    compressor: Compressor = factory(**options)
    return compressor
