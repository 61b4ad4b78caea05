"""docs/http.md says of every field whether it is supported."""

from pathlib import Path

import pytest

from fsr.gateway.http.schemas.requests import ChatRequest, CompressionOptions, CompressRequest
from fsr.gateway.http.schemas.unsupported import REQUEST, WITHOUT_EFFECT

PAGE = (Path(__file__).parents[5] / "docs/http.md").read_text()
NAMES = {*ChatRequest.model_fields, *CompressionOptions.model_fields, *CompressRequest.model_fields}


@pytest.mark.parametrize("name", sorted(NAMES | set(REQUEST) | set(WITHOUT_EFFECT)))
def test_field_is_on_the_page(name):
    assert f"`{name}`" in PAGE
