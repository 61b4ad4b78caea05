"""Policies: what a request gets that leaves its budget or its method open, and which budgets it may ask for.

A policy of one place (the service's options, a model, a key, a key for a model) has only the fields that are set there.
`resolve` puts the policies of all places together, field by field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from fsr.common.errors import InvalidRequest
from fsr.common.requests.budget_text import parse_budget_text
from fsr.common.requests.method_options import DEFAULT_METHOD, check_options
from fsr.v1 import gateway_pb2, types_pb2

__all__ = ["Applied", "BudgetText", "MethodOptions", "Policy", "TokenCount", "check_method_options", "resolve"]


def _budget_text(value: object) -> str:
    """A number of a YAML or TOML file becomes text; raises ValueError for what is no budget."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is no budget; write tokens (64), a share (0.11), or auto")
    text = repr(value) if isinstance(value, int | float) else value.strip()
    parse_budget_text(text)
    return text


def check_method_options(value: dict[str, Any]) -> dict[str, Any]:
    """The options themselves. Raises ValueError if JSON cannot hold a value."""
    try:
        options = Struct()
        options.update(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{error}; values are numbers, texts, booleans or lists of them") from error
    check_options(options, "option")
    return value


BudgetText = Annotated[str, BeforeValidator(_budget_text)]
MethodOptions = dict[str, Any]
TokenCount = Annotated[int, Field(ge=0, le=2**31 - 1)]


@dataclass(frozen=True, kw_only=True)
class Applied:
    """How the images of one request are compressed, and who chose it.

    `bounds` is set where only the encoder can tell whether the budget, a share of the tokens, is within the policy's.
    """

    budget: types_pb2.Budget
    budget_chosen_by: types_pb2.ChosenBy.ValueType
    method: types_pb2.Method
    method_chosen_by: types_pb2.ChosenBy.ValueType
    bounds: types_pb2.TokenBounds | None

    def report_to(self, message: gateway_pb2.Usage | gateway_pb2.CompressResponse) -> None:
        """Tells the caller."""
        message.budget.CopyFrom(self.budget)
        message.budget_chosen_by = self.budget_chosen_by
        message.method = self.method.name
        message.method_chosen_by = self.method_chosen_by


class Policy(BaseModel):
    """The fields of a policy. A place sets some of them, a resolved policy has all."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    default_budget: BudgetText = "auto"
    default_method: str = Field(default=DEFAULT_METHOD, min_length=1)
    default_options: MethodOptions = Field(default_factory=dict)
    min_tokens: TokenCount = Field(default=0, strict=True)
    max_tokens: TokenCount = Field(default=0, strict=True)

    _check_options = field_validator("default_options")(check_method_options)

    def check(self) -> None:
        """Raises ValueError, which begins with the field, if fields contradict each other.

        Whether a default share is within the bounds depends on the image, so the encoder narrows it to them.
        """
        if self.max_tokens and self.min_tokens > self.max_tokens:
            raise ValueError(f"max_tokens: {self.max_tokens} is below min_tokens {self.min_tokens}; raise it")
        default = parse_budget_text(self.default_budget)
        try:
            self._within_bounds(default)
        except InvalidRequest as error:
            reason = f"{self.default_budget} is outside of {self._range()}, which min_tokens and max_tokens allow"
            raise ValueError(f"default_budget: {reason}; change one of them") from error

    def apply(self, budget: types_pb2.Budget, method: types_pb2.Method) -> Applied:
        """The compression of a request with this budget and method.

        An open one gets the policy's; an automatic budget is narrowed to the bounds. Raises InvalidRequest for a
        budget out of bounds.
        """
        by_request, by_policy = types_pb2.CHOSEN_BY_REQUEST, types_pb2.CHOSEN_BY_POLICY
        chosen, budget_chosen_by = types_pb2.Budget(), by_request
        if budget.WhichOneof("kind") is None:
            chosen, budget_chosen_by = parse_budget_text(self.default_budget), by_policy
        chosen.MergeFrom(budget)
        applied_method, method_chosen_by = types_pb2.Method(name=method.name), by_request
        if not method.name:
            applied_method.name, method_chosen_by = self.default_method, by_policy
            applied_method.options.update(self.default_options)
        applied_method.options.MergeFrom(method.options)
        return Applied(
            budget=self._within_bounds(chosen),
            budget_chosen_by=budget_chosen_by,
            method=applied_method,
            method_chosen_by=method_chosen_by,
            bounds=self._bounds() if chosen.HasField("keep_ratio") else None,
        )

    def message(self) -> gateway_pb2.Policy:
        """What ListModels shows of it."""
        message = gateway_pb2.Policy(
            default_budget=self._within_bounds(parse_budget_text(self.default_budget)),
            default_method=self.default_method,
            bounds=self._bounds(),
        )
        message.default_options.update(self.default_options)
        return message

    def _bounds(self) -> types_pb2.TokenBounds | None:
        if not self.min_tokens and not self.max_tokens:
            return None
        return types_pb2.TokenBounds(min_tokens=self.min_tokens, max_tokens=self.max_tokens)

    def _range(self) -> str:
        return f"{self.min_tokens or 1}..{self.max_tokens or 'all'}"

    def _within_bounds(self, budget: types_pb2.Budget) -> types_pb2.Budget:
        """The budget, an automatic one narrowed to the bounds. Raises InvalidRequest if it is outside of them."""
        low, high = self.min_tokens, self.max_tokens
        if budget.HasField("tokens"):
            remedy = f"ask for a number in {self._range()}"
            if high and budget.tokens > high:
                reason = f"{budget.tokens} is more than {high}, the most that the policy allows"
                raise InvalidRequest(f"budget.tokens: {reason}; {remedy}")
            if budget.tokens < low:
                reason = f"{budget.tokens} is fewer than {low}, the fewest that the policy allows"
                raise InvalidRequest(f"budget.tokens: {reason}; {remedy}")
        elif budget.HasField("auto"):
            auto = budget.auto
            least, most = max(low, auto.min_tokens), min(filter(None, (high, auto.max_tokens)), default=0)
            if most and least > most:
                asked = f"{auto.min_tokens or 1}..{auto.max_tokens or 'all'}"
                reason = f"{asked} has no number in {self._range()}, which the policy allows"
                raise InvalidRequest(f"budget.auto: {reason}; leave out min_tokens and max_tokens")
            auto.min_tokens, auto.max_tokens = least, most
        return budget


def resolve(*places: Policy) -> Policy:
    """One policy from those of several places, the least specific first: each field is that of the last place that
    sets it. Options belong to a method: a place that names a method leaves the options of earlier places behind.

    Raises ValueError, which begins with the field, if the result contradicts itself.
    """
    fields: dict[str, Any] = {}
    for place in places:
        if "default_method" in place.model_fields_set:
            fields.pop("default_options", None)
        fields |= {name: getattr(place, name) for name in place.model_fields_set}
    resolved = Policy(**fields)
    resolved.check()
    return resolved
