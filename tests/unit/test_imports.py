"""Who may import whom, read off a fresh interpreter."""

import subprocess
import sys

import pytest

FORBIDDEN = {
    "services.gateway.__main__": (
        "torch",
        "ray",
        "fsr_core",
        "services.encoder",
        "services.decoder",
        "services.client",
    ),
    "services.client.cli": ("torch", "ray", "fsr_core", "services.gateway", "services.encoder", "services.decoder"),
    "services.decoder.__main__": ("ray", "services.gateway", "services.encoder", "services.client"),
    "services.encoder.app": ("services.gateway", "services.decoder", "services.client"),
    "fsr_core.backbones": ("ray", "grpc", "services", "fsr"),
    "fsr_core.tiny.scenes": ("torch", "transformers"),
    "fsr_core.overlay": ("torch", "transformers"),
}


@pytest.fixture(scope="module")
def interpreters():
    """One for each module, all at work at once: imports of torch take seconds."""
    code = "import sys, {0}; print(*sys.modules)"
    command = [sys.executable, "-c"]
    started = {
        module: subprocess.Popen([*command, code.format(module)], stdout=subprocess.PIPE, text=True)
        for module in FORBIDDEN
    }
    yield started
    for process in started.values():
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("module", FORBIDDEN)
def test_arrows(interpreters, module):
    loaded = set(interpreters[module].communicate()[0].split())
    assert module.removesuffix(".__main__") in loaded
    assert not loaded & set(FORBIDDEN[module])
