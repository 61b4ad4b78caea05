import pytest

from fsr_core.savings import Geometry, savings, wire_bytes_per_token

LLAVA_7B = Geometry(
    layers=32, hidden=4096, intermediate=11008, heads=32, kv_heads=32, head_dim=128, vocab=32064, dtype_bytes=2
)


def test_llava_7b_equals_paper():
    """Half a megabyte of KV cache a token, and 9.04 -> 2.29 TFLOP for 576 -> 64 tokens."""
    saved = savings(LLAVA_7B, text_tokens=112, visual_before=576, visual_after=64)
    assert LLAVA_7B.cost_model().kv_bytes_per_token == 512 * 1024
    assert saved.kv_bytes == (576 - 64) * 512 * 1024
    assert saved.prefill_flops_before / 1e12 == pytest.approx(9.04, rel=0.01)
    assert saved.prefill_flops_after / 1e12 == pytest.approx(2.29, rel=0.01)


def test_wire_bytes_of_int8_include_scale():
    assert [wire_bytes_per_token(10, d) for d in ("fp32", "bf16", "int8")] == [40, 20, 14]


def test_bad_count_is_named():
    with pytest.raises(ValueError, match="visual_after"):
        savings(LLAVA_7B, text_tokens=1, visual_before=3, visual_after=4)
    with pytest.raises(ValueError, match="text_tokens"):
        savings(LLAVA_7B, text_tokens=-1, visual_before=3, visual_after=3)
    with pytest.raises(ValueError, match="wire_dtype"):
        wire_bytes_per_token(3, "fp8")
