"""Replicas, memory, bandwidth and cost of a load, against sums by hand and against the simulation."""

from dataclasses import replace

import pytest

from fsr_core import Budget
from fsr_core.planning.gpus import GPUS, find_gpu
from fsr_core.planning.models import model_figures
from fsr_core.planning.plan import make_plan, over_load, over_rate
from fsr_core.planning.simulation import Deployment, Load, simulate
from fsr_core.planning.sizing import plan_case
from fsr_core.planning.workload import Assumptions, Workload

LLAVA, H100 = model_figures("llava-hf/llava-1.5-7b-hf"), GPUS["h100"]
WORK, ASSUMED = Workload(rate=1000.0, visual_tokens=576), Assumptions()


def case(kept=64, model=LLAVA, gpu=H100, work=WORK, **assumed):
    return plan_case(model, gpu, work, kept, replace(ASSUMED, **assumed))


def test_llava_on_an_h100_by_hand():
    few, all_tokens = case(64), case(576)
    # 512 KiB a token, 60 + 64 + 128 tokens; 80 % of what 13.5 GB of weights leave of 80 GB.
    assert few.kv_bytes == 252 * 2**19 and all_tokens.kv_bytes == 764 * 2**19
    assert few.kv_capacity_bytes == pytest.approx(0.8 * (80e9 - 13.478e9), rel=1e-3)
    assert (few.answers_at_a_time, all_tokens.answers_at_a_time) == (402, 132)
    # 124 tokens of 6.5 GMAC at 396 TFLOP/s, then 128 steps which read 13.5 GB and 402 x 132 MB at 3.35 TB/s.
    step = (13.478e9 + 402 * 252 * 2**19) / 3.35e12
    assert few.decoders.seconds == pytest.approx(1.61e12 / 395.6e12 + 128 * step / 402, rel=0.01)
    assert few.decoders.replicas == -(-1000 * few.decoders.seconds // 0.7)
    assert few.encoders.replicas == 2 and few.encoder_cores.replicas == 28
    assert (few.gateways.replicas, all_tokens.gateways.replicas) == (6, 12)
    assert few.bytes_per_second == 2 * 1000 * (274_000 + 64 * 8192)
    assert few.gpus == few.decoders.replicas + 2
    assert few.dollars_per_hour == pytest.approx(few.gpus * 3.99 + 34 * 0.0408)
    assert few.dollars_per_million == pytest.approx(few.dollars_per_hour / 3.6)


def test_what_binds_a_decoder_follows_the_largest_part():
    assert "KV cache" in case(64).decoders.binds and "prefill" in case(576).decoders.binds
    long = replace(WORK, answer_tokens=2000)
    assert "KV cache" in case(576, work=long).decoders.binds
    assert "max_running" in case(64, max_running=8).decoders.binds
    small = replace(H100, memory=16e9)
    assert "more KV memory" in case(576, gpu=small).decoders.binds
    slow = replace(H100, bandwidth=1e15)
    assert "decoding" in case(64, gpu=slow, work=long).decoders.binds


def test_small_load_needs_two_of_each_for_availability():
    tiny = case(work=replace(WORK, rate=1.0))
    tiers = (tiny.decoders, tiny.encoders, tiny.encoder_cores, tiny.gateways)
    assert all(tier.replicas == 2 and tier.binds == "availability: at least 2" for tier in tiers)
    assert case(work=replace(WORK, rate=1.0), min_replicas=1).decoders.replicas == 1


def test_long_answers_bind_gateways_by_their_requests():
    long = replace(WORK, answer_tokens=4000)
    gateways = case(work=long).gateways
    assert gateways.binds == "requests in flight" and gateways.replicas > case().gateways.replicas


def test_more_gpus_for_a_decoder_hold_a_larger_model():
    large, l4 = model_figures("llava-hf/llava-1.5-13b-hf"), GPUS["l4"]
    with pytest.raises(ValueError, match=r"^gpus_per_decoder: the weights of llava-hf/llava-1.5-13b-hf take 26.0 GB"):
        case(model=large, gpu=l4)
    two = case(model=large, gpu=l4, gpus_per_decoder=2)
    assert two.gpus == 2 * two.decoders.replicas + two.encoders.replicas
    with pytest.raises(ValueError, match="hold no prompt and answer of 50188 tokens"):
        case(gpu=l4, work=replace(WORK, answer_tokens=50_064))


@pytest.mark.parametrize("kept", [64, 576])
def test_simulation_carries_the_planned_rate(kept):
    made = make_plan(LLAVA, H100, WORK, [Budget(tokens=kept)], ASSUMED)
    planned, simulated = made.cases[0].planned, made.cases[0].simulated
    share = 4 / planned.decoders.replicas
    assert simulated.answers_per_second == pytest.approx(share * 1000, rel=0.1)
    # The formula leaves the queues out, but for the work of other requests that each step meets.
    assert simulated.answer_p50 == pytest.approx(planned.answer_seconds, rel=0.1)


@pytest.mark.parametrize("kept", [64, 576])
def test_capacity_of_a_decoder_is_what_the_simulation_reaches(kept):
    planned = case(kept)
    times = replace(planned.times, gateway=0.0, picture=0.0, tower=0.0)
    deployment = Deployment(answers_at_a_time=planned.answers_at_a_time, prompts_in_a_pass=4, batch_seconds=0.0)
    load = Load(clients=2 * planned.answers_at_a_time, seconds=16.0, warm_up=12.0)
    seen = simulate(times, deployment, WORK.answer_tokens, load)
    assert seen.answers_per_second == pytest.approx(1 / planned.decoders.seconds, rel=0.07)


def test_plan_has_each_number_of_tokens_once_from_few_to_all():
    budgets = [Budget(tokens=128), Budget(keep_ratio=0.11), Budget(tokens=9999)]
    labels = [
        one.label for one in make_plan(LLAVA, H100, replace(WORK, rate=20.0, answer_tokens=8), budgets, ASSUMED).cases
    ]
    assert labels == ["63 tokens", "128 tokens", "all 576 tokens"]


def test_automatic_budget_cannot_be_planned():
    with pytest.raises(ValueError, match=r"^budget: a plan needs tokens"):
        make_plan(LLAVA, H100, WORK, [Budget(auto=True)], ASSUMED)


def test_curves_rise_with_the_rate():
    made = make_plan(LLAVA, H100, replace(WORK, rate=100.0, answer_tokens=32), [Budget(tokens=64)], ASSUMED)
    for points in over_rate(made, [10.0, 100.0, 1000.0]).values():
        gpus = [point.gpus for point in points]
        assert gpus == sorted(gpus) and gpus[0] < gpus[-1]
    for points in over_load(made, [0.2, 1.0]).values():
        assert points[0].answer_p95 < points[1].answer_p95


def test_gpu_takes_other_figures():
    own = find_gpu("H100", {"price": 2.0, "flops": None})
    assert (own.name, own.price, own.price_source, own.flops) == ("h100", 2.0, "given", H100.flops)
    figures = {"flops": 1e14, "memory": 24e9, "bandwidth": 1e12, "price": 0.0001}
    assert find_gpu("mine", figures).name == "mine"
    with pytest.raises(ValueError, match=r"^gpu: 'mine' is unknown; use one of a100, .*missing: price"):
        find_gpu("mine", figures | {"price": None})


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate", 0.0), ("rate", float("nan")), ("visual_tokens", 0), ("answer_tokens", 0), ("text_tokens", -1)],
)
def test_wrong_workload_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        replace(WORK, **{field: value})


@pytest.mark.parametrize(("field", "value"), [("fill", 0.0), ("fill", 1.1), ("min_replicas", 0), ("core_price", -1.0)])
def test_wrong_assumption_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        replace(ASSUMED, **{field: value})
