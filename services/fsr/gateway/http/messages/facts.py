"""Our own figures of a response, as JSON: usage, and which tokens of an image were kept."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from fsr.gateway.http.messages.options import budget_value
from fsr.v1 import gateway_pb2 as pb
from fsr.v1 import types_pb2

__all__ = ["applied_facts", "enum_word", "image_facts", "image_sizes", "usage_object"]

# What only a language model needs.
_LAYOUT = ("features", "newlines", "source_newlines", "positions", "grid", "deepstack")
# What is a tensor in a safetensors file.
_TENSORS = ("features", "index", "newlines", "positions", "deepstack")
_EXPLANATION_TENSORS = ("stage", "merged_into", "priority")


def usage_object(usage: pb.Usage) -> dict[str, Any]:
    """OpenAI's usage, with all of ours under `fsr`."""
    figures = {field.name: _number(usage, field.name) for field in usage.DESCRIPTOR.fields}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "fsr": figures | applied_facts(usage),
    }


def applied_facts(message: pb.Usage | pb.CompressResponse) -> dict[str, Any]:
    """Budget and method that were applied, and who chose them; null for a request without images."""
    spread = types_pb2.Spread.DESCRIPTOR, message.budget.spread or types_pb2.SPREAD_EVEN
    chosen_by = types_pb2.ChosenBy.DESCRIPTOR
    facts = {
        "budget": budget_value(message.budget),
        "spread": enum_word(*spread),
        "budget_chosen_by": enum_word(chosen_by, message.budget_chosen_by),
        "method": message.method,
        "method_chosen_by": enum_word(chosen_by, message.method_chosen_by),
    }
    return facts if message.HasField("budget") else dict.fromkeys(facts)


def _number(usage: pb.Usage, name: str) -> Any:
    """Numbers stay numbers, also those of 64 bits, which protobuf's own JSON makes strings."""
    value = getattr(usage, name)
    return dict(sorted(value.items())) if name == "seconds" else value


def enum_word(kind: Any, number: int) -> str:
    """A value of an enum in lower case, without the enum's name: CHOSEN_BY_POLICY is "policy"."""
    names = [value.name for value in kind.values]
    prefix = names[0].removesuffix("UNSPECIFIED")
    return str(kind.values_by_number[number].name).removeprefix(prefix).lower()


def image_facts(image: types_pb2.CompressedImage, *, features: bool = False) -> dict[str, Any]:
    """Which tokens were kept, by source index, and why, if the request asked for it.

    `features`: also what a language model needs, with bytes in base64.
    """
    facts = _as_dict(image)
    if not features:
        return {name: value for name, value in facts.items() if name not in _LAYOUT}
    for tensor, message in zip(
        [facts["features"], *facts["deepstack"]], [image.features, *image.deepstack], strict=True
    ):
        tensor["dtype"] = enum_word(types_pb2.Dtype.DESCRIPTOR, message.dtype)
    return facts


def image_sizes(image: types_pb2.CompressedImage) -> dict[str, Any]:
    """The same without its arrays, which a safetensors file has as tensors."""
    facts = {name: value for name, value in _as_dict(image).items() if name not in _TENSORS}
    for name in _EXPLANATION_TENSORS:
        facts.get("explanation", {}).pop(name, None)
    return facts


def _as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
