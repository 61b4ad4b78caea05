"""Who may import whom, read off a fresh interpreter."""

import subprocess
import sys

import pytest

FORBIDDEN = {
    "fsr.gateway.__main__": ("torch", "ray", "fsr_core", "fsr.encoder", "fsr.decoder", "fsr.client", "fsr.cli"),
    "fsr.client": ("torch", "ray", "typer", "rich", "fsr_core", "fsr.gateway", "fsr.encoder", "fsr.decoder", "fsr.cli"),
    "fsr.cli.main": ("torch", "ray", "fsr_core", "fsr.gateway", "fsr.encoder", "fsr.decoder"),
    "fsr.decoder.__main__": ("ray", "fsr.gateway", "fsr.encoder", "fsr.client", "fsr.cli"),
    "fsr.encoder.app": ("fsr.gateway", "fsr.decoder", "fsr.client", "fsr.cli"),
    "fsr_core.fsr": ("fsr", "fsr_core.baselines", "fsr_core.backbones"),
    "fsr_core.guided": ("fsr", "fsr_core.baselines", "fsr_core.backbones"),
    "fsr_core.backbones": ("ray", "grpc", "fsr", "fsr_core.baselines"),
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
