import contextlib
import io
import warnings

import pytest

with warnings.catch_warnings():  # pydantic 2 warns of how Ray 2.60 declares its schemas
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
def system(tmp_path_factory, free_ports):
    """Addresses of a running system: a gateway with room for 24 requests, two decoders with 8 MiB of KV memory each,
    and metrics of the encoder every second."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # for these services only, not for later tests
            patch.setenv("RAY_metrics_report_interval_ms", "1000")
            patch.setenv("FSR_GATEWAY_MAX_REQUESTS", "24")
            patch.setenv("FSR_DECODER_KV_MEMORY", "8MiB")
            logs = tmp_path_factory.mktemp("logs")
            addresses = stack.enter_context(running("fsr-tiny", 2, free_ports(30), logs))
        yield addresses
