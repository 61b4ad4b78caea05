import io
import warnings

import pytest

with warnings.catch_warnings():  # pydantic 2 warns of how Ray 2.60 declares its schemas
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray.serve  # noqa: F401

from fsr_core.tiny.scenes import draw, make_scene
from helpers.collector import collector


def _png(seed):
    out = io.BytesIO()
    draw(make_scene(seed)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def png():
    return _png


@pytest.fixture(scope="package")
def traces():
    """What a collector gets of the running system."""
    with collector() as receiver:
        yield receiver


@pytest.fixture(scope="package")
def system(running_system, traces):
    """A running system of its own: what Prometheus sees are the requests of these tests and of no others.

    Its gateway refuses early, its decoders have room for a dozen answers, the encoder reports every second, and a
    collector gets its traces.
    It ends with these tests: a Ray that stands idle takes a fifth of a core.
    """
    with running_system(
        RAY_metrics_report_interval_ms="1000",
        FSR_GATEWAY_MAX_REQUESTS="24",
        FSR_GATEWAY_MAX_WAITING="8",
        FSR_DECODER_KV_MEMORY="8MiB",
        OTEL_EXPORTER_OTLP_ENDPOINT=traces.address,
        OTEL_BSP_SCHEDULE_DELAY="500",
    ) as system:
        yield system
