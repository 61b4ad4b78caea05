"""Visual tokens as items of vLLM: places, positions and keys, without vLLM."""

from dataclasses import replace

import pytest
import torch

from fsr.decoder.engines.vllm.visual_items import leading_jumps, positions_of, visual_items
from fsr_core.backbones import KeptImage
from fsr_core.backbones.language.splice import splice

PICTURE, PAD = 7, 1
WIDTH, LEVELS = 6, 2


def block(kept, grid=(1, 5, 4), seed=0, steps=1):
    noise = torch.Generator().manual_seed(seed)
    places = torch.randperm(max(kept, grid[1] * grid[2]), generator=noise)[:kept].sort().values % (grid[1] * grid[2])
    times = torch.arange(kept) * steps // max(1, kept)
    positions = torch.stack([times, places // grid[2], places % grid[2]], 1)
    rows = torch.randn(kept, WIDTH, generator=noise)
    deepstack = torch.randn(LEVELS, kept, WIDTH, generator=noise)
    return KeptImage(features=rows, positions=positions, grid=grid, deepstack=deepstack)


def prompt(text, *blocks):
    """`text`: "." is a token of text, "x" the place of the next block."""
    ids = torch.tensor([PICTURE if letter == "x" else PAD for letter in text])
    return splice(ids, blocks, (PICTURE,), lambda ids: torch.zeros(len(ids), WIDTH), True)


LAYOUTS = {
    "text": ("....",),
    "picture": ("..x...", block(6)),
    "at the start": ("x..", block(6)),
    "pictures": ("..x...x..", block(6), block(3, (1, 2, 9), 1)),
    "touching pictures": (".xx.", block(6), block(3, (1, 2, 9), 1)),
    "first frames empty": (".x..x..x..", block(0), block(0), block(4)),
    "frames between empty": (".x..x..x..", block(4), block(0), block(4, seed=1)),
    "last frames empty": (".x..x..x..", block(4), block(0), block(0)),
    "beside an empty frame": (".xx.xx.", block(0), block(4), block(3, seed=1), block(0)),
    "long video": ("..x...", block(12, (40, 2, 2), steps=40)),
}


def placed(prompt):
    return [item.placed for item in visual_items(prompt)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_positions_follow_from_the_items(name):
    whole = prompt(*LAYOUTS[name])
    length = len(whole.token_ids)
    positions, following = positions_of(length, placed(whole))
    assert torch.equal(positions, whole.position_ids) and following == whole.next_position
    # An answer is text after the prompt, past the largest of its positions.
    positions, following = positions_of(length + 3, placed(whole))
    answer = whole.next_position + torch.arange(3)
    assert torch.equal(positions, torch.cat([whole.position_ids, answer.expand(3, -1)], 1))
    assert following == whole.next_position + 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_items_hold_every_row_beside_its_deepstack_rows(name):
    whole = prompt(*LAYOUTS[name])
    items = visual_items(whole)
    places = [place for item in items for place in range(item.placed.offset, item.placed.offset + len(item.rows))]
    assert places == whole.visual_mask.nonzero().flatten().tolist()
    rows = torch.cat([item.rows for item in items]) if items else torch.zeros(0, WIDTH * (1 + LEVELS))
    assert torch.equal(rows[:, :WIDTH], whole.inputs_embeds[whole.visual_mask])
    for level in range(LEVELS if items else 0):
        beside = rows[:, WIDTH * (1 + level) : WIDTH * (2 + level)]
        assert torch.equal(beside, whole.deepstack[level])


def keys(text, *blocks):
    return [item.digest() for item in visual_items(prompt(text, *blocks))]


def test_a_key_changes_with_rows_positions_and_extent_alone():
    one, two = block(6), block(3, (1, 2, 9), 1)
    key = keys("..x...x..", one, two)
    assert keys("..x...x.....", one, two) == key
    assert keys(".....x...x..", one, two) == key
    assert keys("..x...x..", one, block(4))[0] == key[0]
    shifted = one.positions.clone()
    shifted[0, 0] += 1
    brighter, deeper = one.features.clone(), one.deepstack.clone()
    brighter[2, 3] += 1
    deeper[1, 2, 3] += 1
    for other in (
        replace(one, positions=shifted),
        replace(one, grid=(1, 9, 4)),
        replace(one, features=brighter),
        replace(one, deepstack=deeper),
    ):
        changed = keys("..x...x..", other, two)
        assert changed[0] != key[0] and changed[1] == key[1]


def test_a_key_tells_where_the_answer_begins_if_positions_jump_there():
    """Else the same tokens as text of a later turn, which stand elsewhere, would find the answer's keys and values."""
    long = block(12, (40, 2, 2), steps=40)
    assert keys("..x...", long) != keys("..x....", long)
    assert keys("..x...", block(6)) == keys("..x....", block(6))


def test_jumps_before_the_first_item_are_known():
    assert leading_jumps(visual_items(prompt(*LAYOUTS["first frames empty"]))) == [(1, 5), (3, 5)]
    for name in ("text", "pictures", "frames between empty", "last frames empty"):
        assert leading_jumps(visual_items(prompt(*LAYOUTS[name]))) == []


def test_positions_that_do_not_follow_are_a_fault():
    whole = prompt(*LAYOUTS["picture"])
    text = whole.position_ids.clone()
    text[1, 0] += 1  # a text token with different axes
    alone = prompt("....")
    for broken in (replace(whole, position_ids=text), replace(alone, position_ids=alone.position_ids + 3)):
        with pytest.raises(RuntimeError, match="do not follow"):
            visual_items(broken)
