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


@pytest.mark.parametrize("module", FORBIDDEN)
def test_arrows(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module.removesuffix(".__main__") in loaded
    assert not loaded & set(FORBIDDEN[module])
