import pytest
import torch

from fsr.decoder.log_probabilities import likeliest, log_probabilities


def test_log_probabilities_of_rows_with_different_counts_are_each_rows_own():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    tokens, counts = torch.tensor([3, 0, 39, 7, 7]), [2, 0, 20, 1, 40]
    every = logits.double().log_softmax(-1)
    got = log_probabilities(logits, tokens, counts)
    for row, (logprob, top) in enumerate(got):
        ranked = sorted(range(40), key=lambda token, row=row: -every[row, token])
        assert logprob == pytest.approx(every[row, tokens[row]].item(), abs=1e-6)
        assert [token for token, _ in top] == ranked[: counts[row]]
        assert [value for _, value in top] == pytest.approx([every[row, t].item() for t, _ in top], abs=1e-6)
    assert [
        alone for row in range(5) for alone in log_probabilities(logits[[row]], tokens[[row]], [counts[row]])
    ] == got


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_log_probabilities_of_half_precision_add_up(dtype):
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(2)).to(dtype)
    ((_, top),) = log_probabilities(logits, torch.tensor([0]), [20])
    assert torch.tensor([value for _, value in top]).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_likeliest_when_there_are_more_places_than_tokens_has_all_tokens():
    ((_, top),) = log_probabilities(torch.zeros(1, 3), torch.tensor([1]), [20])
    assert [token for token, _ in top] == [1, 0, 2]


@pytest.mark.parametrize("chosen", [0, 17, 49])
def test_likeliest_of_equally_likely_tokens_begin_with_the_chosen_one(chosen):
    """Nothing but the token itself tells which of many equal logits a greedy step took."""
    logits = torch.zeros(1, 50)
    logits[0, 5] = -1
    ((_, top),) = log_probabilities(logits, torch.tensor([chosen]), [3])
    assert top[0].id == chosen and len({token for token, _ in top}) == 3


def test_likeliest_when_the_chosen_one_is_unlikely_leaves_it_out():
    assert likeliest({9: -5.0, 4: -0.5, 2: -1.0}, chosen=9, count=2) == ((4, -0.5), (2, -1.0))
    assert likeliest({9: -5.0}, chosen=9, count=0) == ()
