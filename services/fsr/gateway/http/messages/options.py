"""Our own options of a request, under `fsr`, to and from the gateway's messages."""

from __future__ import annotations

from typing import Any

from fsr.common.errors import InvalidRequest
from fsr.common.requests.method_options import MAX_VALUES, check_options
from fsr.gateway.http.field_names import FieldNames
from fsr.gateway.http.schemas.requests import AutoBudget, CompressionOptions
from fsr.v1 import types_pb2

__all__ = ["budget_message", "budget_value", "method_message", "wire_dtype"]


def budget_message(options: CompressionOptions) -> types_pb2.Budget:
    """The budget; without a kind if the request leaves it to the policy."""
    spread = types_pb2.Spread.Value(f"SPREAD_{(options.spread or 'unspecified').upper()}")
    match options.budget:
        case None:
            return types_pb2.Budget(spread=spread)
        case "auto":
            return types_pb2.Budget(auto=types_pb2.AutoBudget(), spread=spread)
        case "all":
            return types_pb2.Budget(keep_ratio=1.0, spread=spread)
        case AutoBudget() as auto:
            return types_pb2.Budget(auto=types_pb2.AutoBudget(**auto.model_dump()), spread=spread)
        case int():
            return types_pb2.Budget(tokens=options.budget, spread=spread)
        case _:
            return types_pb2.Budget(keep_ratio=options.budget, spread=spread)


def budget_value(budget: types_pb2.Budget) -> Any:
    """The budget as a request would send it: tokens, a share, "auto" or the bounds of auto; None if it is not set."""
    match budget.WhichOneof("kind"):
        case "tokens":
            return budget.tokens
        case "keep_ratio":
            return budget.keep_ratio
        case "auto":
            bounds = {field.name: value for field, value in budget.auto.ListFields()}
            return bounds or "auto"
    return None


def method_message(options: CompressionOptions, names: FieldNames) -> types_pb2.Method:
    """The method and its options. Tells `names` of them. Raises InvalidRequest."""
    values = (options.options or {}).values()
    if sum(len(value) if isinstance(value, list) else 1 for value in values) > MAX_VALUES:
        raise InvalidRequest(f"fsr.options: hold more than {MAX_VALUES} values; send fewer")
    method = types_pb2.Method(name=options.method or "")
    names.options.update(options.options or {})
    for name, value in (options.options or {}).items():
        try:
            method.options.update({name: value})
        except (OverflowError, ValueError) as error:  # an integer that no double holds
            raise InvalidRequest(f"fsr.options.{name}: is out of range; give a smaller number") from error
    try:
        check_options(method.options, "fsr.options")
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return method


def wire_dtype(options: CompressionOptions) -> types_pb2.Dtype.ValueType:
    """The wanted format of the features; unspecified if the request leaves it to the gateway."""
    return types_pb2.Dtype.Value(f"DTYPE_{(options.wire_dtype or 'unspecified').upper()}")
