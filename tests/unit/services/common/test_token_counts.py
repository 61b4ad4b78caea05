from fsr.common.requests.token_counts import TokenCounts, count_tokens
from fsr.v1 import types_pb2


def test_count_tokens_when_focus_was_clamped():
    image = types_pb2.CompressedImage(
        source_tokens=100, index=range(20), focus_count=5, focus_wanted=8, merged_count=70
    )
    assert count_tokens(image) == TokenCounts(
        source=100,
        kept=20,
        kept_by_stage={"focus": 5, "scan": 15},
        merged=70,
        dropped=10,
        focus_wanted=8,
        focus_kept=5,
    )
