"""A share of the tokens, and the bounds of the gateway's policy."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsr.common.errors import InvalidRequest
from fsr.encoder.requests.request_plan import plan_of
from fsr.encoder.requests.share_bounds import ShareBounds
from fsr.v1 import encoder_pb2, types_pb2
from fsr_core import Budget


def kept(share, tokens, low=0, high=None, narrows=False):
    return ShareBounds(low, high, narrows).apply(Budget(keep_ratio=share), tokens).limits(tokens).maximum


@pytest.mark.parametrize(
    ("share", "tokens", "low", "high", "expected"),
    [
        (0.2, 576, 0, None, 115),
        (0.2, 576, 16, 128, 115),
        (1.0, 128, 16, 128, 128),
        (1.0, 10, 16, 128, 10),  # an image with fewer tokens than the policy's fewest
    ],
)
def test_share_within_the_bounds_is_the_caller_s(share, tokens, low, high, expected):
    assert kept(share, tokens, low, high) == expected


@pytest.mark.parametrize(
    ("share", "tokens", "low", "high", "kept_tokens", "says"),
    [
        (0.9, 576, 16, 128, 518, "more than 128, the most that the policy allows; ask for at most 0.22"),
        (1.0, 2880, 0, 4, 2880, "more than 4, the most that the policy allows; ask for at most 0.001"),
        (0.01, 576, 16, 128, 6, "fewer than 16, the fewest that the policy allows; ask for at least 0.03"),
        (0.5, 576, 100, 100, 288, "more than 100, the most that the policy allows; ask for at most 0.173"),
        (0.5, 10, 16, 128, 5, "fewer than 10, the fewest that the policy allows; ask for at least 1"),
    ],
)
def test_share_out_of_bounds_is_refused_with_the_numbers(share, tokens, low, high, kept_tokens, says):
    with pytest.raises(InvalidRequest) as caught:
        kept(share, tokens, low, high)
    assert str(caught.value) == f"budget.keep_ratio: {share:g} of {tokens} tokens are {kept_tokens}, {says}"


@pytest.mark.parametrize(
    ("share", "tokens", "low", "high", "expected"),
    [(0.9, 576, 16, 128, 128), (0.01, 576, 16, 128, 16), (0.2, 576, 16, 128, 115), (0.5, 10, 16, 128, 10)],
)
def test_share_of_the_policy_itself_is_narrowed(share, tokens, low, high, expected):
    assert kept(share, tokens, low, high, narrows=True) == expected


def test_other_budgets_are_the_gateway_s_to_judge():
    for budget in (Budget(tokens=500), Budget(auto=True, max_tokens=500)):
        assert ShareBounds(16, 128).apply(budget, 576) is budget


@given(st.integers(1, 5000), st.data(), st.booleans())
def test_remedy_when_it_is_followed_is_accepted(tokens, data, narrows):
    low, high = sorted(data.draw(st.tuples(st.integers(0, 5000), st.integers(1, 5000))))
    share = data.draw(st.floats(1e-6, 1))
    bounds = ShareBounds(low, max(1, high), narrows)
    try:
        result = bounds.apply(Budget(keep_ratio=share), tokens).limits(tokens).maximum
    except InvalidRequest as error:
        assert not narrows
        remedy = float(re.search(r"ask for at (?:most|least) (\S+)$", str(error))[1])
        result = bounds.apply(Budget(keep_ratio=remedy), tokens).limits(tokens).maximum
    assert min(low, tokens) <= result <= high


def test_bounds_that_are_no_range_are_refused():
    bounds = types_pb2.TokenBounds(min_tokens=9, max_tokens=3)
    request = encoder_pb2.EncodeRequest(instruction="?", budget=types_pb2.Budget(keep_ratio=0.5), bounds=bounds)
    with pytest.raises(InvalidRequest, match=r"bounds: 9\.\.3 is no range of tokens"):
        plan_of(request)
