"""How one request wants its images compressed, read from its message and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from google.protobuf.json_format import MessageToDict

from fsr.common.errors import InvalidRequest
from fsr.common.requests.method_options import check_options
from fsr.common.requests.names import check_name
from fsr.encoder.requests.share_bounds import ShareBounds
from fsr.v1 import encoder_pb2, types_pb2
from fsr_core import DEFAULT_METHOD, Budget, Compressor, create
from fsr_core.spread import Spread

__all__ = ["RequestPlan", "plan_of"]

_SPREADS: Mapping[int, Spread] = {
    types_pb2.SPREAD_UNSPECIFIED: "even",
    types_pb2.SPREAD_EVEN: "even",
    types_pb2.SPREAD_FREE: "free",
}


@dataclass(frozen=True, kw_only=True)
class RequestPlan:
    """What applies to every image of a request. Requests with equal compressors and spreads share a batch."""

    compressor: Compressor
    budget: Budget
    bounds: ShareBounds
    spread: Spread
    instruction: str


def plan_of(request: encoder_pb2.EncodeRequest) -> RequestPlan:
    """The plan of a request. Raises InvalidRequest, naming the field that is wrong."""
    for field in ("request_id", "cache_salt"):
        check_name(field, getattr(request, field))
    check_name("method.name", request.method.name)
    if not request.instruction.strip():
        raise InvalidRequest("instruction: is blank; ask a question")
    if request.budget.spread not in _SPREADS:
        raise InvalidRequest(f"budget.spread: {request.budget.spread} is unknown; use even or free")
    try:
        compressor, budget = _compressor_of(request.method), _budget_of(request.budget)
    except (ValueError, TypeError) as error:
        raise InvalidRequest(str(error)) from error
    return RequestPlan(
        compressor=compressor,
        budget=budget,
        bounds=_bounds_of(request),
        spread=_SPREADS[request.budget.spread],
        instruction=request.instruction,
    )


def _compressor_of(method: types_pb2.Method) -> Compressor:
    """Raises ValueError and TypeError."""
    name = method.name or DEFAULT_METHOD
    if not method.options.fields:
        return _with_defaults(name)
    check_options(method.options, "method.options")
    return create(name, **MessageToDict(method.options))


_with_defaults = cache(create)  # compressors have no state


def _bounds_of(request: encoder_pb2.EncodeRequest) -> ShareBounds:
    """Raises InvalidRequest."""
    low, high = request.bounds.min_tokens, request.bounds.max_tokens
    if low < 0 or high < 0 or 0 < high < low:
        raise InvalidRequest(f"bounds: {low}..{high} is no range of tokens; give min_tokens <= max_tokens")
    return ShareBounds(low, high or None, narrows=request.budget_chosen_by == types_pb2.CHOSEN_BY_POLICY)


def _budget_of(message: types_pb2.Budget) -> Budget:
    kind = message.WhichOneof("kind")
    if kind == "tokens":
        return Budget(tokens=message.tokens)
    if kind == "keep_ratio":
        return Budget(keep_ratio=message.keep_ratio)
    if kind == "auto":
        auto = message.auto
        low, high = auto.min_tokens or 1, auto.max_tokens or None
        if not auto.HasField("radius"):
            return Budget(auto=True, min_tokens=low, max_tokens=high)
        return Budget(auto=True, min_tokens=low, max_tokens=high, radius=auto.radius)
    raise ValueError("budget: is not set; give tokens, keep_ratio or auto")
