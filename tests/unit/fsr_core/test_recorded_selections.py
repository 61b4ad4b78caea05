"""Selections against those that the authors' own code made of the same inputs.

`recorded_selections.json` has random inputs (ours) and what the code of the papers kept of them: AnchorPrune
(MULTI-cau/AnchorPrune, commit 9aa2774, `anchorprune_select` with K_min = 5 / 32 of K) and HoloV (obananas/HoloV, commit
1d2e65e, `HoloV` with 16 crops; the rows that are not padding).
"""

import json
from pathlib import Path

import pytest
import torch

from fsr_core import VisualTokens, create

CASES = json.loads(Path(__file__).with_name("recorded_selections.json").read_text())
RUNS = [(number, int(k)) for number, case in enumerate(CASES) for k in case["holov"]]


def tokens(number: int) -> VisualTokens:
    case = CASES[number]
    scores = (torch.tensor(case[name]) for name in ("saliency", "relevance"))
    return VisualTokens(torch.tensor(case["features"]).view(-1, case["width"]), *scores)


@pytest.mark.parametrize(("number", "k"), RUNS)
def test_anchorprune_keeps_what_the_authors_code_kept(number, k):
    kept, theirs = create("anchorprune").compress(tokens(number), k), CASES[number]["anchorprune"][str(k)]
    assert kept.index.tolist() == theirs["kept"]
    assert kept.index[kept.stage == 0].tolist() == theirs["anchor"]


@pytest.mark.parametrize(("number", "k"), RUNS)
def test_holov_by_the_codes_rule_keeps_what_the_authors_code_kept(number, k):
    kept = create("holov", rule="code").compress(tokens(number), k)
    assert kept.index.tolist() == CASES[number]["holov"][str(k)]


def test_holov_when_a_crop_is_too_small_for_its_share_then_the_codes_rule_keeps_fewer():
    lost = [(number, k) for number, k in RUNS if len(CASES[number]["holov"][str(k)]) < k]
    assert lost  # there are such recordings: the code fills up with zero vectors
    for number, k in lost:
        assert len(create("holov", rule="code").compress(tokens(number), k)) < k
        assert len(create("holov").compress(tokens(number), k)) == k


def test_holov_with_weight_0_differs_from_the_codes_rule():
    tokens_of_144, k = tokens(3), 18
    by_attention = create("holov", weight=0).compress(tokens_of_144, k)
    assert not torch.equal(by_attention.index, create("holov", rule="code").compress(tokens_of_144, k).index)
