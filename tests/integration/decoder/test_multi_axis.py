"""Families whose visual tokens bring positions of their own, several pictures and videos: what every engine must do."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
import torch

from fsr.common.wire import codec
from fsr.v1 import types_pb2
from helpers import checkpoints
from helpers.replicas import ENGINE, LONG, Ask, ids, question, random_image, served, serving

pytestmark = pytest.mark.parametrize("checkpoint", served(*checkpoints.MULTI_AXIS), indirect=True)
on_vllm = pytest.mark.skipif(ENGINE != "vllm", reason="another engine has no such cache, or no such limit")
WARM = {"temperature": 1.5, "top_p": 0.95, "top_k": 50, "seed": 5}


def test_pictures_and_videos_are_the_librarys(replica, shows):
    """Greedy ids and log probabilities, alone and all at once, and from any place of an answer on."""
    requests = [ask.with_(max_tokens=24, ignore_eos=True, logprobs=True) for ask in shows.values()]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(replica.decode, requests))
    for name, ask in shows.items():
        got = replica.decode(ask.with_(max_tokens=24, ignore_eos=True, logprobs=True))
        assert ids(got) == ids(together.pop(0)) == ask.generate(24), name
        places = ask.log_probabilities(ids(got))[len(ask.prompt.token_ids) - 1 : -1]
        want = places.gather(1, torch.tensor(ids(got)).unsqueeze(1)).flatten()
        assert torch.allclose(torch.tensor([p for m in got for p in m.logprobs]), want, atol=1e-3), name
        for cut in (1, 6, 13, 23):
            after = replica.decode(ask.with_(emitted=ids(got)[:cut], max_tokens=24, ignore_eos=True))
            assert ids(after) == ids(got)[cut:], (name, cut)


@on_vllm
def test_an_answer_moves_between_engines(replica, shows, checkpoint, tmp_path):
    """From vLLM to transformers, and back: the tokens are those of one undisturbed run, greedy or sampled."""
    with serving(tmp_path / "log", "--model", checkpoint, engine="transformers") as other:
        for name, ask in shows.items():
            for sampling in ({"temperature": 0.0}, WARM):
                sampling = {"max_tokens": 24, "ignore_eos": True} | sampling
                whole = ids(replica.decode(ask.with_(**sampling)))
                assert ids(other.decode(ask.with_(**sampling))) == whole, name
                for cut in (1, 5, 12, 20):
                    for one in (other, replica):
                        after = one.decode(ask.with_(emitted=whole[:cut], **sampling))
                        assert ids(after) == whole[cut:], (name, sampling, cut)


def cached(replica, ask, salt=""):
    """Prompt tokens that needed no computing. The answer is right whatever was cached."""
    got = replica.decode(ask.with_(max_tokens=8, ignore_eos=True, salt=salt))
    assert ids(got) == ask.generate(8)
    return got[-1].stats.cached_tokens


@on_vllm
def test_an_equal_picture_is_computed_once(replica, model):
    """Equal in its rows, positions and extent, and asked by the same tenant."""
    image = random_image(model, 80, 20)
    ask = Ask(model, image, "what colour is the star?")
    assert cached(replica, ask) == 0
    assert cached(replica, ask) >= 64
    assert cached(replica, Ask(model, image, "where?")) >= 64
    assert cached(replica, ask, salt="another") == 0
    moved, larger = image.positions.clone(), replace(image, grid=(1, 12, 14))
    moved[-1] += torch.tensor([1, 0, 0])
    assert cached(replica, Ask(model, replace(image, positions=moved), "what colour is the star?")) == 0
    assert cached(replica, Ask(model, larger, "what colour is the star?")) == 0
    if model.deepstack_layers:
        other = image.deepstack.clone()
        other[-1, 0, 0] += 1
        assert cached(replica, Ask(model, replace(image, deepstack=other), "what colour is the star?")) == 0


@on_vllm
def test_text_behind_an_empty_frame_is_not_taken_from_another_video(replica, model):
    """The same text, before any visual token, at other positions: the empty first frame was larger."""
    for side in (4, 9):
        image = random_image(model, 3, 30, (2, side, side), (0.3, 1.5))
        if len(model.blocks(image)) == 1:
            pytest.skip("the family writes no text between frames")
        positions = image.positions.clone()
        positions[:, 0] = 1
        assert cached(replica, Ask(model, replace(image, positions=positions), "what?", system=LONG)) == 0


@on_vllm
def test_positions_beyond_the_rotary_table_are_refused(replica, model):
    """The table has four times as many rows as the context; a position beyond it would end the engine."""
    limit, answer = 4 * model.info.context_length, 8
    text = question(model, 4, "what?").prompt.next_position - 12
    for rows, fits in ((limit - answer - text, True), (limit - answer - text + 1, False)):
        ask = Ask(model, random_image(model, 4, 40, (1, rows, 2)), "what?")
        request = ask.with_(max_tokens=answer, ignore_eos=True)
        if fits:
            assert ids(replica.decode(request)) == ask.generate(answer)
            continue
        with pytest.raises(grpc.RpcError, match=f"reach {limit + 1}, this replica takes {limit}") as caught:
            replica.decode(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def broken(request, change):
    """The request with one thing wrong in its image."""
    image = request.images[0]
    if change == "positions":
        del image.positions[-1]
    elif change == "fewer positions":
        del image.positions[-3:]
    elif change == "no grid":
        image.ClearField("grid")
    elif change == "grid":
        image.grid.rows = 1
    elif change == "rows":
        image.features.CopyFrom(codec.encode(torch.ones(17, image.features.shape[1])))
    elif change == "levels":
        image.deepstack.append(image.features)
    elif change == "extent":
        image.grid.rows = 2**32 - 1
    return request


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("positions", "images[0].positions"),
        ("fewer positions", "images[0].positions"),
        ("no grid", "images[0].positions: are missing"),
        ("grid", "images[0].positions: reach"),
        ("rows", "images[0]."),
        ("levels", "images[0].deepstack: has"),
        pytest.param("extent", "images: positions", marks=on_vllm),
    ],
)
def test_a_wrong_image_is_named_and_harms_nobody(replica, asks, change, says):
    with pytest.raises(grpc.RpcError) as caught:
        replica.decode(broken(asks["few"].with_(max_tokens=4), change))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and says in caught.value.details()
    assert ids(replica.decode(asks["one"].with_(max_tokens=8, ignore_eos=True))) == asks["one"].generate(8)


def test_poison_beside_the_features_is_refused(replica, asks, model):
    """DeepStack features reach the same keys and values."""
    request = asks["few"].with_(max_tokens=4)
    if not request.images[0].deepstack:
        pytest.skip("the family has no DeepStack")
    shape = [16, model.info.feature_dim]
    data = torch.full(shape, torch.inf).numpy().tobytes()
    request.images[0].deepstack[1].CopyFrom(types_pb2.Tensor(dtype=types_pb2.DTYPE_FP32, shape=shape, data=data))
    with pytest.raises(grpc.RpcError, match=r"deepstack") as caught:
        replica.decode(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
