"""Who may import whom: loaded modules of a fresh interpreter, and import statements of files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fsr_core

FORBIDDEN = {
    "fsr.gateway.__main__": ("torch", "ray", "fsr_core", "fsr.encoder", "fsr.decoder", "fsr.client", "fsr.cli"),
    "fsr.gateway.http.app": ("torch", "ray", "fsr_core", "fsr.encoder", "fsr.decoder", "fsr.client", "fsr.cli"),
    "fsr.client": ("torch", "ray", "typer", "rich", "fsr_core", "fsr.gateway", "fsr.encoder", "fsr.decoder", "fsr.cli"),
    "fsr.cli.main": ("torch", "ray", "simpy", "matplotlib", "fsr_core", "fsr.gateway", "fsr.encoder", "fsr.decoder"),
    "fsr.decoder.__main__": ("torch", "ray", "fsr_core", "fsr.gateway", "fsr.encoder", "fsr.client", "fsr.cli"),
    "fsr.decoder.server": ("ray", "fsr.gateway", "fsr.encoder", "fsr.client", "fsr.cli"),
    "fsr.encoder.app": ("fsr.gateway", "fsr.decoder", "fsr.client", "fsr.cli"),
    "fsr_core.fsr": ("fsr", "fsr_core.baselines", "fsr_core.backbones"),
    "fsr_core.volume": ("fsr", "fsr_core.baselines", "fsr_core.backbones"),
    "fsr_core.backbones": ("ray", "grpc", "fsr", "fsr_core.baselines"),
    "fsr_core.tiny.scenes": ("torch", "transformers"),
    "fsr_core.overlay": ("torch", "transformers"),
    "fsr_core.planning.plan": ("torch", "transformers", "fsr"),
}
CORE = Path(fsr_core.__file__).parent
VISION, LANGUAGE = "fsr_core.backbones.vision", "fsr_core.backbones.language"
# Files under fsr_core, and the package that they must not name in any import statement, inside functions too.
ROOMS = {
    "method files import no baselines": ("*.py", "fsr_core.baselines"),
    "vision imports no language": ("backbones/vision/*.py", LANGUAGE),
    "language imports no vision": ("backbones/language/*.py", VISION),
    "what both share imports no vision": ("backbones/checkpoints/*.py", VISION),
    "what both share imports no language": ("backbones/checkpoints/*.py", LANGUAGE),
}


# Modules that one interpreter loads in turn, because an import of torch takes seconds: what an earlier one may load, a
# later one may load too.
IN_TURN = (
    ("fsr.gateway.__main__", "fsr.gateway.http.app"),
    ("fsr.client", "fsr.cli.main"),
    ("fsr.decoder.__main__",),
    ("fsr_core.tiny.scenes", "fsr_core.overlay", "fsr_core.planning.plan"),
    ("fsr_core.fsr", "fsr_core.volume", "fsr_core.backbones", "fsr.decoder.server"),
    ("fsr.encoder.app",),
)


@pytest.fixture(scope="module")
def loaded():
    """For each module, the names of all that a fresh interpreter has loaded after it."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name); print(*sys.modules)"
    started = [
        (modules, subprocess.Popen([sys.executable, "-c", code, *modules], stdout=subprocess.PIPE, text=True))
        for modules in IN_TURN
    ]
    try:
        lines = [(modules, process.communicate()[0].splitlines()) for modules, process in started]
    finally:
        for _, process in started:
            process.kill()
            process.wait()
    return {module: set(line.split()) for names, said in lines for module, line in zip(names, said, strict=True)}


@pytest.mark.parametrize("module", FORBIDDEN)
def test_module_loads_nothing_forbidden(loaded, module):
    assert module in loaded[module]
    assert not loaded[module] & set(FORBIDDEN[module])


def imported(file: Path) -> set[str]:
    """Every name in the import statements of a file, with its package."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("rule", ROOMS)
def test_files_import_nothing_of_another_room(rule):
    pattern, forbidden = ROOMS[rule]
    files = sorted(CORE.glob(pattern))
    assert len(files) > 1
    for file in files:
        assert not [name for name in imported(file) if f"{name}.".startswith(f"{forbidden}.")], file
