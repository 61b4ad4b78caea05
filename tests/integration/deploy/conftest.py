import io
import warnings

import pytest

with warnings.catch_warnings():  # pydantic 2 warns of how Ray 2.60 declares its schemas
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray.serve  # noqa: F401

from fsr_core.tiny.scenes import draw, make_scene


def _png(seed):
    out = io.BytesIO()
    draw(make_scene(seed)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def png():
    return _png
