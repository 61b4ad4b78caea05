"""Clients of OpenAI's API that need an environment of their own, against the whole system. `make test-clients`."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from fsr.client import Client

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients/bin/python"
NODE_MODULES = ROOT / ".node-clients/node_modules"
KEY = "open-sesame"
pytestmark = pytest.mark.clients


@pytest.fixture(scope="module")
def gateway(system, spawn, free_ports):
    decoders = ",".join(system[f"decoder-{number}"] for number in range(2))
    port = free_ports()
    replicas = ("--encoders", system["encoder"], "--decoders", decoders)
    service = spawn("gateway", *replicas, "--http-port", str(port), "--api-keys", KEY)
    service.wait_until_serving()
    service.base_url = f"http://127.0.0.1:{port}/v1"
    return service


@pytest.fixture(scope="module")
def picture(pictures, tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "scene.png"
    file.write_bytes(pictures(700, 1)[0])
    return file


def expected(gateway, picture):
    with Client(gateway.address, api_key=KEY) as client:
        options = {"budget": 16, "max_tokens": 20, "ignore_eos": True}
        return client.ask(picture, "What colour is the star?", **options)


def said(*command, **environment):
    """What a client's script prints."""
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openai_for_node(gateway, picture):
    script = ROOT / "tests/clients/openai_node.cjs"
    result = said("node", script, gateway.base_url, KEY, picture, NODE_PATH=str(NODE_MODULES))
    answer, text = result["answer"], expected(gateway, picture).text
    assert answer["choices"][0]["message"]["content"] == result["streamed"] == text
    assert answer["choices"][0]["finish_reason"] == "length"
    assert result["request_id"] == answer["usage"]["fsr"]["request_id"]
    assert result["usage"]["completion_tokens"] == 20 and result["usage"]["fsr"]["visual_tokens_kept"] == 16
    assert result["models"] == ["fsr-tiny"]
    several, missing, stranger = result["errors"]
    assert (several["class"], several["status"], several["param"]) == ("BadRequestError", 400, "n")
    assert (missing["class"], missing["status"], missing["param"]) == ("NotFoundError", 404, "model")
    assert (stranger["class"], stranger["status"]) == ("AuthenticationError", 401)
    assert "API key is unknown" in stranger["message"]


def test_langchain(gateway, picture):
    """A picture written as OpenAI does and as LangChain does, and a stream with its usage."""
    script = ROOT / "tests/clients/langchain_chat.py"
    result = said(PYTHON, script, gateway.base_url, KEY, picture)
    assert result["text"] == result["streamed"] and result["pieces"] > 5
    assert result["finish_reason"] == "length" and result["figures"]["visual_tokens_kept"] == 16
    for usage in (result["usage"], result["streamed_usage"]):
        assert usage["output_tokens"] == 20
        assert usage["total_tokens"] == usage["input_tokens"] + 20
    assert [(error["status"], error["param"]) for error in result["errors"]] == [
        (400, "n"),
        (404, "model"),
        (401, None),
    ]
