"""What fewer visual tokens save: KV cache, prefill compute and bytes on the wire, from the shape of a model.

Pure Python, so that any module may import it. KV cache and compute depend only on the prompt length ``L`` (in tokens,
text and visual together) and four numbers per model (:class:`CostModel`). A decoder announces these numbers, and a
process without torch computes with them.

``L`` counts every place of the prompt. A dropped visual token saves one place. So does a newline of the layout
(LLaVA-NeXT, LLaVA-OneVision) whose row keeps no token.

**Wire bytes**: one row of ``hidden`` numbers per visual place, newlines included. Models with DeepStack (Qwen3-VL) send
one more row per token for each of its layers.

The paper (arXiv 2602.05809) reports for LLaVA-1.5-7B 0.5 MB of KV cache a token and 9.04 -> 2.29 TFLOP for 576 -> 64
visual tokens. The formulas of :meth:`Geometry.cost_model` give the first exactly, and the second within 0.2 % at 112
text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

#: Bytes of one number in each dtype of the wire and of caches.
DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}

_INT8_SCALE_BYTES = 4  # one fp32 scale per row


@dataclass(frozen=True, slots=True)
class CostModel:
    """The four numbers that turn a prompt length into memory and compute.

    Attributes:
        flops_constant: FLOPs of a prefill, whatever its length.
        flops_linear: FLOPs per prompt token.
        flops_quadratic: FLOPs per squared prompt token.
        kv_bytes_per_token: bytes of KV cache per prompt token.
    """

    flops_constant: int
    flops_linear: int
    flops_quadratic: int
    kv_bytes_per_token: int

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_count(field.name, getattr(self, field.name), minimum=0)

    def prefill_flops(self, tokens: int) -> int:
        """FLOPs of prefilling a prompt of ``tokens`` tokens; 0 for an empty prompt."""
        _require_count("tokens", tokens, minimum=0)
        if tokens == 0:
            return 0
        return self.flops_constant + self.flops_linear * tokens + self.flops_quadratic * tokens**2

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of KV cache of ``tokens`` tokens."""
        _require_count("tokens", tokens, minimum=0)
        return self.kv_bytes_per_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Shape of a decoder-only language model with gated MLPs and (grouped) full attention in every layer.

    Attributes:
        layers: transformer blocks.
        hidden: width of the residual stream, and of a visual token.
        intermediate: inner width of the MLP.
        heads: query heads.
        kv_heads: key-value heads (``heads`` without grouped-query attention).
        head_dim: width of one head.
        vocab: rows of the output head.
        dtype_bytes: bytes of one cached number (2 for fp16 and bf16).

    Raises:
        ValueError: a field is not a positive integer, or ``heads`` is not a multiple of ``kv_heads``.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dtype_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_count(field.name, getattr(self, field.name), minimum=1)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}; check the model's config"
            )

    @classmethod
    def from_config(cls, config: Any, *, dtype_bytes: int) -> Geometry:
        """The geometry of a Hugging Face text config, such as ``LlamaConfig``.

        Raises:
            ValueError: the config lacks one of the sizes.
        """
        try:
            heads = config.num_attention_heads
            return cls(
                layers=config.num_hidden_layers,
                hidden=config.hidden_size,
                intermediate=config.intermediate_size,
                heads=heads,
                kv_heads=getattr(config, "num_key_value_heads", None) or heads,
                head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
                vocab=config.vocab_size,
                dtype_bytes=dtype_bytes,
            )
        except AttributeError as error:
            raise ValueError(f"config: not the config of a decoder-only language model ({error})") from error

    def cost_model(self) -> CostModel:
        """KV cache and prefill FLOPs of this language model.

        KV cache: each layer keeps a key and a value of ``kv_heads * head_dim`` numbers per token.

        FLOPs: only matrix products count, two FLOPs per multiply-add. Each layer computes

        - per token: the query and output projections, the key and value projections, and the three products of the
          gated MLP (gate, up, down);
        - per pair of a query and a key at or before it, ``L * (L + 1) / 2`` pairs: the score, and the value's share of
          the output.

        The head is computed once, for the last place.
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = 2 * (2 * self.hidden * queries) + 2 * (2 * self.hidden * keys)
        mlp = 3 * (2 * self.hidden * self.intermediate)
        pair = 2 * (2 * queries)
        return CostModel(
            flops_constant=2 * self.hidden * self.vocab,
            flops_linear=self.layers * (projections + mlp + pair // 2),
            flops_quadratic=self.layers * (pair // 2),
            kv_bytes_per_token=self.layers * 2 * keys * self.dtype_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """The costs of one prompt before and after compression.

    Tokens are visual tokens and newlines. KV bytes and FLOPs are those of the whole prompt, text included. Wire bytes
    are the payload of the visual tokens and newlines.
    """

    tokens_before: int
    tokens_after: int
    kv_bytes_before: int
    kv_bytes_after: int
    prefill_flops_before: int
    prefill_flops_after: int
    wire_bytes_before: int
    wire_bytes_after: int

    @property
    def tokens(self) -> int:
        """Visual tokens saved."""
        return self.tokens_before - self.tokens_after

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache saved."""
        return self.kv_bytes_before - self.kv_bytes_after

    @property
    def prefill_flops(self) -> int:
        """Prefill FLOPs saved."""
        return self.prefill_flops_before - self.prefill_flops_after

    @property
    def wire_bytes(self) -> int:
        """Payload bytes saved between encoder and decoder."""
        return self.wire_bytes_before - self.wire_bytes_after


def wire_bytes_per_token(feature_dim: int, wire_dtype: str) -> int:
    """Bytes of one visual token's row on the wire: its numbers, and for ``int8`` its fp32 scale.

    Args:
        feature_dim: width of the row.
        wire_dtype: one of ``fp32``, ``fp16``, ``bf16``, ``int8``.

    Raises:
        ValueError: ``feature_dim`` is not positive or ``wire_dtype`` is unknown.
    """
    _require_count("feature_dim", feature_dim, minimum=1)
    if wire_dtype not in DTYPE_BYTES:
        raise ValueError(f"wire_dtype = {wire_dtype!r} is unknown; use one of {', '.join(DTYPE_BYTES)}")
    return feature_dim * DTYPE_BYTES[wire_dtype] + (_INT8_SCALE_BYTES if wire_dtype == "int8" else 0)


def savings(
    geometry: Geometry,
    *,
    text_tokens: int,
    visual_before: int,
    visual_after: int,
    wire_dtype: str = "fp16",
    deepstack_layers: int = 0,
) -> Savings:
    """The costs of one prompt with ``visual_before`` and with ``visual_after`` visual tokens.

    Args:
        geometry: the language model's shape.
        text_tokens: tokens of the prompt that are not visual (template, question, history).
        visual_before: visual tokens and newlines of all images of the prompt before compression.
        visual_after: the same after compression; at most ``visual_before``.
        wire_dtype: dtype of the rows on the wire (see :func:`wire_bytes_per_token`).
        deepstack_layers: further rows that are sent with each visual token.

    Raises:
        ValueError: a count is negative or not an integer, or ``visual_after > visual_before``.
    """
    counts = {"text_tokens": text_tokens, "visual_before": visual_before, "visual_after": visual_after}
    for name, count in (counts | {"deepstack_layers": deepstack_layers}).items():
        _require_count(name, count, minimum=0)
    if visual_after > visual_before:
        raise ValueError(
            f"visual_after = {visual_after} exceeds visual_before = {visual_before}; compression never adds tokens"
        )
    costs = geometry.cost_model()
    row = wire_bytes_per_token(geometry.hidden, wire_dtype) * (1 + deepstack_layers)
    before, after = text_tokens + visual_before, text_tokens + visual_after
    return Savings(
        tokens_before=visual_before,
        tokens_after=visual_after,
        kv_bytes_before=costs.kv_bytes(before),
        kv_bytes_after=costs.kv_bytes(after),
        prefill_flops_before=costs.prefill_flops(before),
        prefill_flops_after=costs.prefill_flops(after),
        wire_bytes_before=row * visual_before,
        wire_bytes_after=row * visual_after,
    )


def _require_count(name: str, value: object, *, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} = {value!r}: expected an integer of at least {minimum}")
