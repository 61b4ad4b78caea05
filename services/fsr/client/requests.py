"""From what a caller has to what travels: pictures, budgets, methods, sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal

from fsr.client.errors import InvalidRequestError
from fsr.client.media import ImageSource, image_messages
from fsr.common.limits import check_finite
from fsr.v1 import gateway_pb2, types_pb2

__all__ = ["Budget", "Spread", "WireDtype", "budget_of", "compress_request", "generate_request", "parse_budget"]

Budget = int | float | Literal["auto"]
Spread = Literal["even", "free"]
WireDtype = Literal["fp32", "fp16", "bf16", "int8"]


def generate_request(
    images: ImageSource | Sequence[ImageSource],
    question: str,
    *,
    budget: Budget = "auto",
    spread: Spread = "even",
    method: str = "fsr",
    options: Mapping[str, Any] | None = None,
    model: str = "",
    wire_dtype: WireDtype | None = None,
    max_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 0.0,
    top_k: int = 0,
    repetition_penalty: float = 0.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    logprobs: bool = False,
) -> gateway_pb2.GenerateRequest:
    """One question about pictures and videos. Raises InvalidRequestError naming the argument."""
    pictures = image_messages(images)
    parts = [types_pb2.Part(image=i) for i in range(len(pictures))]
    try:
        return gateway_pb2.GenerateRequest(
            model=model,
            images=pictures,
            messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[*parts, types_pb2.Part(text=question)])],
            budget=budget_of(budget, spread),
            method=_method(method, options),
            wire_dtype=_wire_dtype(wire_dtype),
            sampling=_sampling(
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=list(stop),
                ignore_eos=ignore_eos,
                logprobs=logprobs,
            ),
        )
    except (TypeError, ValueError) as error:
        raise _unfit(error) from error


def compress_request(
    images: ImageSource | Sequence[ImageSource],
    instruction: str,
    *,
    budget: Budget = "auto",
    spread: Spread = "even",
    method: str = "fsr",
    options: Mapping[str, Any] | None = None,
    model: str = "",
    wire_dtype: WireDtype | None = None,
    explain: bool = False,
) -> gateway_pb2.CompressRequest:
    """Pictures and videos to compress for one instruction. Raises InvalidRequestError naming the argument."""
    pictures = image_messages(images)
    try:
        return gateway_pb2.CompressRequest(
            model=model,
            images=pictures,
            instruction=instruction,
            budget=budget_of(budget, spread),
            method=_method(method, options),
            wire_dtype=_wire_dtype(wire_dtype),
            explain=explain,
        )
    except (TypeError, ValueError) as error:
        raise _unfit(error) from error


def _sampling(**options: Any) -> types_pb2.Sampling:
    sampling = types_pb2.Sampling()
    for name, value in options.items():
        try:
            sampling.MergeFrom(types_pb2.Sampling(**{name: value}))
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{name}: {value!r} is out of range or of the wrong type ({error})") from error
    return sampling


def _unfit(error: Exception) -> InvalidRequestError:
    """What protobuf itself refuses: a number out of range, a text that is none."""
    return InvalidRequestError(f"request: {error}; check the arguments' types and ranges")


def budget_of(budget: Budget, spread: Spread = "even") -> types_pb2.Budget:
    """An int is a number of tokens, a float a share of them, "auto" as many as the evidence asks for.

    Over the tiles of a picture or the frames of a video it is shared evenly, or goes where the evidence is ("free").
    Raises InvalidRequestError naming the argument.
    """
    if spread not in ("even", "free"):
        raise InvalidRequestError(f"spread: {spread!r} is unknown; use even or free")
    message = _kind(budget)
    message.spread = types_pb2.Spread.Value(f"SPREAD_{spread.upper()}")
    return message


def _kind(budget: Budget) -> types_pb2.Budget:
    if budget == "auto":
        return types_pb2.Budget(auto=types_pb2.AutoBudget())
    if isinstance(budget, bool) or not isinstance(budget, Real):  # NumPy's numbers too
        raise InvalidRequestError(f"budget: expected tokens (int), a share (float) or 'auto', got {budget!r}")
    if not isinstance(budget, Integral):
        return types_pb2.Budget(keep_ratio=float(budget))
    if not -(2**31) <= budget < 2**31:
        raise InvalidRequestError(f"budget: {budget} tokens is no sensible number; a budget of all tokens keeps all")
    return types_pb2.Budget(tokens=int(budget))


def parse_budget(text: str) -> Budget:
    """A budget as people write it. Raises InvalidRequestError."""
    if text == "auto":
        return "auto"
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError as error:
        wanted = "is neither tokens (16) nor a share (0.11) nor auto"
        raise InvalidRequestError(f"--budget: {text!r} {wanted}") from error


def _method(name: str, options: Mapping[str, Any] | None) -> types_pb2.Method:
    method = types_pb2.Method(name=name)
    try:
        method.options.update(dict(options or {}))
    except ValueError as error:
        raise InvalidRequestError(f"options: {error}; values are numbers, texts, booleans or lists of them") from error
    try:
        check_finite(method.options, "options")
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
    return method


def _wire_dtype(name: WireDtype | None) -> types_pb2.Dtype.ValueType:
    if name is None:
        return types_pb2.DTYPE_UNSPECIFIED
    if name not in ("fp32", "fp16", "bf16", "int8"):
        raise InvalidRequestError(f"wire_dtype: {name!r} is unknown; use fp32, fp16, bf16 or int8")
    return types_pb2.Dtype.Value(f"DTYPE_{name.upper()}")
