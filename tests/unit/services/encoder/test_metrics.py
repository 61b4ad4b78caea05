"""The encoder's metrics with Ray's own classes, without a cluster: labels of any text, and no error for a request."""

import warnings

import pytest
from structlog.testing import capture_logs

with warnings.catch_warnings():  # pydantic 2 warns of how Ray 2.60 declares its schemas
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray.serve import metrics

    from fsr.encoder.metrics import METRICS, EncoderMetrics
from fsr.v1 import encoder_pb2, types_pb2

RESPONSE = encoder_pb2.EncodeResponse(
    images=[types_pb2.CompressedImage(source_tokens=9, index=[1, 2], focus_count=1, focus_wanted=3, merged_count=2)],
    cache_hits=1,
)


@pytest.mark.parametrize("name", ["fsr-tiny", "möd", "模型"])
def test_metrics_when_a_name_is_of_any_script_count_it(name):
    with capture_logs() as lines:
        counted = EncoderMetrics(name)
        counted.note_batch(1, 0.5, 0.25)
        counted.note_response(name, RESPONSE, 9)
        counted.flush()
    assert lines == []


def test_metrics_when_ray_refuses_one_are_logged_and_raise_nothing(monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("no")

    counted = EncoderMetrics("fsr-tiny")
    for kind in (metrics.Counter, metrics.Gauge, metrics.Histogram):
        monkeypatch.setattr(kind, {"Counter": "inc", "Gauge": "set"}.get(kind.__name__, "observe"), refuse)
    with capture_logs() as lines:
        counted.note_batch(1, 0.5, 0.25)
        counted.note_response("fsr", RESPONSE, 9)
        counted.flush()
    assert {line["what"] for line in lines} <= {name.removeprefix("fsr_encoder_") for name in METRICS}
    assert {(line["event"], line["reason"]) for line in lines} == {("not counted", "ValueError('no')")}
