import pytest

from fsr.common.requests.budget_text import budget_text, parse_budget_text
from fsr.v1 import types_pb2


def auto(**bounds):
    return types_pb2.Budget(auto=types_pb2.AutoBudget(**bounds))


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("64", types_pb2.Budget(tokens=64)),
        ("1", types_pb2.Budget(tokens=1)),
        ("0.11", types_pb2.Budget(keep_ratio=0.11)),
        ("1.0", types_pb2.Budget(keep_ratio=1.0)),
        ("1e-05", types_pb2.Budget(keep_ratio=1e-5)),
        ("auto", auto()),
        ("auto:16..128", auto(min_tokens=16, max_tokens=128)),
        ("auto:16..", auto(min_tokens=16)),
        ("auto:..128", auto(max_tokens=128)),
    ],
)
def test_budget_when_it_is_written_and_read_is_the_same(text, budget):
    assert parse_budget_text(text) == budget
    assert budget_text(budget) == text


def test_budget_when_it_is_open_has_no_text():
    assert budget_text(types_pb2.Budget(spread=types_pb2.SPREAD_FREE)) == ""


WRONG = ["", "0", "-4", "2147483648", "0.0", "1.1", "1e400", "nan", "inf", "few", "all", "Auto", "16..128"]
WRONG_BOUNDS = ["", "..", "16", "9..3", "0..3", "a..b", "1..2147483648"]


@pytest.mark.parametrize("text", [*WRONG, *(f"auto:{bounds}" for bounds in WRONG_BOUNDS)])
def test_text_that_is_no_budget_is_refused_with_the_ways_to_write_one(text):
    with pytest.raises(ValueError, match=r"is no budget; write tokens \(64\), a share \(0\.11\), auto") as caught:
        parse_budget_text(text)
    assert str(caught.value).startswith(repr(text))
