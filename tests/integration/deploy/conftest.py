import contextlib
import io
import warnings

import pytest

with warnings.catch_warnings():  # Ray 2.60 declares its schemas in a way that pydantic 2 deprecates
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray.serve  # noqa: F401


from fsr.cli.local_stack import running
from fsr_core.tiny.scenes import draw, make_scene


def _png(seed):
    out = io.BytesIO()
    draw(make_scene(seed)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def png():
    return _png


@pytest.fixture(scope="session")
def system(tmp_path_factory, free_ports, long_context):
    """Addresses of a running system with two decoders, a gateway that refuses early, decoders with
    room for a dozen answers, and metrics every second."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for the services alone, not for the tests that come after
            patch.setenv("RAY_metrics_report_interval_ms", "1000")
            patch.setenv("FSR_GATEWAY_MAX_REQUESTS", "24")
            patch.setenv("FSR_DECODER_KV_MEMORY", "8MiB")
            logs = tmp_path_factory.mktemp("logs")
            addresses = stack.enter_context(running(str(long_context), 2, free_ports(30), logs, wait=None))
        yield addresses


@pytest.fixture(scope="session")
def same_model(long_context):
    """The flag with which a decoder serves what the system's encoder serves; the name is `--served-name`."""
    return ("--model", str(long_context))
