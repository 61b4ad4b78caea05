"""The benchmark takes costs apart as they were put together."""

import pytest

from benchmarks.plan import BATCH, CpuSeconds, Row, service_times, table

PARTS = {"gateway": 0.003, "caller": 0.001, "Serve's ingress": 0.005, "encoder replica": 0.02, "decoder": 0.0}
TOKENS = {"gateway": 0.0, "caller": 0.0, "Serve's ingress": 0.0, "encoder replica": 0.0, "decoder": 0.0}


def cpu(batch, prompts):
    """A step takes 2 ms + 0.5 ms an answer, a pass 4 ms + 1 ms a prompt, relaying 0.2 ms a step + 0.1 ms a token."""
    token = TOKENS | {"decoder": 0.0005 + 0.002 / batch, "gateway": 0.0001 + 0.0002 / batch}
    return CpuSeconds(request=PARTS | {"decoder": 0.001 + 0.004 / prompts}, token=token, batch=batch)


def test_costs_are_taken_apart_into_those_of_a_batch_and_of_each_piece():
    times = service_times(cpu(1, 1), cpu(9.5, 12), (0.004, 0.002), 12)
    assert (times.step, times.step_answer) == pytest.approx((0.002, 0.0005))
    assert (times.prefill_pass, times.prefill) == pytest.approx((0.004, 0.001))
    assert (times.relay_step, times.relay) == pytest.approx((0.0002, 0.0001))
    assert times.gateway == pytest.approx(0.004)
    assert times.picture == pytest.approx(0.005 + 0.02 - 0.002 - 0.004 / BATCH)


def test_costs_that_do_not_fall_together_belong_to_each_piece():
    times = service_times(cpu(9.5, 12), cpu(1, 1), (0.0, 0.0), 12)
    assert (times.step, times.step_answer) == pytest.approx((0.0, 0.0005 + 0.002 / 9.5))


def test_table_shows_relative_errors():
    figures = {"predicted_per_second": 11.0, "measured_per_second": 10.0, "predicted_p95": 0.9, "measured_p95": 1.0}
    assert "| 16 | 8 | 11.0 | 10.0 | +10% | 900 ms | 1000 ms | -10% |" in table([Row(budget=16, clients=8, **figures)])
