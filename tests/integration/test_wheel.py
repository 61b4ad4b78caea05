"""The built wheel, installed in an environment of its own beside an application that has a `services` package."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = {
    "fsr_core": "fsr_core",
    "services/fsr": "fsr",
    "protos/fsr": "fsr",
}  # folders of the source, and their packages
APPLICATION = """
import fsr_core
import fsr.client
from fsr.client import Client, UnavailableError
from services.mine import answer

try:
    with Client("127.0.0.1:1") as client:
        client.ask(b"picture", "?", budget=16, timeout=20)
except UnavailableError as error:
    print(answer(), error)
print(fsr.client.__file__, fsr_core.__file__)
"""
RIGHT = """
import numpy as np
from PIL import Image
from fsr.client import Answer, AsyncClient, Client, Message, Video

def ask(client: Client) -> Answer:
    tokens = client.compress("scene.png", "?", budget=0.1, wire_dtype="int8", explain=True).images[0]
    print(tokens.features.shape, tokens.features @ tokens.features.T)
    client.ask(np.zeros((2, 2, 3), np.uint8), "?", stop="x", timeout=None)
    client.ask([Image.new("RGB", (2, 2)), open("a.png", "rb"), bytearray(), Video.from_file("a.mp4")], "?")
    return client.ask(["a.png", b"bytes"], "?", budget="auto", spread="free", stop=["."], seed=1, timeout=3.0)

def chat(client: Client) -> str:
    turns = [Message("user", "?", "a.png"), Message("assistant", "!"), Message("user", "?", [b"a", "b.png"])]
    client.chat([{"role": "user", "content": "?"}, Message("assistant", "!"), {"role": "user", "content": "?"}])
    return client.chat(turns, budget=16).text + "".join(chunk.text for chunk in client.generate(turns))

async def stream(client: AsyncClient) -> str:
    return "".join([chunk.text async for chunk in client.stream("scene.png", "?", budget=16, logprobs=True)])
"""
WRONG = (
    'client.ask("scene.png", "?", bugdet=16)',
    'client.ask("scene.png", "?", budget="many")',
    'client.compress("scene.png", "?", temperature=1.0)',
    'client.stream("scene.png", "?", max_tokens="3")',
    'client.ask("scene.png", "?").txt',
    'client.ask({1: 2}, "?")',
    'client.chat("?")',
    'client.chat([Message("robot", "?")])',
    "client.generate([], bugdet=16)",
    'client.compress("scene.png", "?", wire_dtype="fp8")',
    'asynchronous.stream(3.5, "?")',
    'asynchronous.stream("scene.png", "?", bugdet=16)',
)
IMPORTED = "from fsr.client import AsyncClient, Client, Message\nclient, asynchronous = Client(), AsyncClient()\n"


def run(*command, folder, **options):
    """Without PYTHONPATH, through which the source could be found instead of the wheel."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, **options
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves folders in the source, whose files would be in the next wheel too."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("fsr_core", "services", "protos"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    code, output = run(sys.executable, *command, folder=folder)
    assert code == 0, output
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel; its other packages are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = ("-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    code, output = run(sys.executable, *command, folder=folder)
    assert code == 0, output
    # A path in a .pth file adds what is in that folder, but not its own .pth files: the editable install stays out.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def packaged(pattern: str) -> set[str]:
    """Paths that files of the source have in the wheel."""
    return {
        f"{package}/{path.relative_to(ROOT / root).as_posix()}"
        for root, package in ROOTS.items()
        for path in (ROOT / root).rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_adds_two_top_level_names_and_holds_every_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"fsr", "fsr_core"}
    assert len(tops) == 3 and "fsr/__init__.py" not in names
    code, markers = packaged("*.py"), packaged("py.typed")
    data = packaged("tiny/weights/*") | packaged("tiny/*.json") | packaged("tiny/README.md")
    assert len(code) > 100 and {"fsr/client/py.typed", "fsr/cli/py.typed", "fsr_core/py.typed"} <= markers
    data |= packaged("http/page/**/*")
    assert {Path(name).suffix for name in data} >= {".json", ".md", ".safetensors", ".html", ".js", ".css", ".webp"}
    assert (code | markers | data) - names == set()


@pytest.mark.parametrize("regular", [True, False], ids=["package", "namespace package"])
def test_application_with_its_own_services_package_uses_both(python, tmp_path, regular):
    folder = tmp_path / "services"
    folder.mkdir()
    if regular:
        (folder / "__init__.py").touch()
    (folder / "mine.py").write_text("def answer():\n    return 'mine'\n")
    (tmp_path / "application.py").write_text(APPLICATION)
    code, output = run(python, "application.py", folder=tmp_path)
    assert code == 0 and output.startswith("mine gateway: no connection "), output
    installed = [Path(path).is_relative_to(python.parents[1]) for path in output.splitlines()[-1].split()]
    assert installed == [True, True]


def test_command_of_the_wheel_runs(python, tmp_path):
    code, output = run(python.with_name("fsr"), "ask", "missing.png", "?", folder=tmp_path)
    assert code == 1 and output.startswith("error: image: cannot read missing.png")


def test_plugin_of_vllm_loads_nothing_heavy(python, tmp_path):
    """Whatever loads entry points of vLLM in an environment without vLLM harms nothing."""
    code = (
        "import sys; from importlib.metadata import entry_points;"
        "(plugin,) = (p for p in entry_points(group='vllm.general_plugins') if p.name == 'fsr');"
        "print(plugin.load().__name__, plugin.load().__code__.co_filename);"
        "assert not {'vllm', 'torch', 'transformers', 'grpc', 'fsr_core'} & sys.modules.keys()"
    )
    code, output = run(python, "-c", code, folder=tmp_path)
    assert code == 0 and output.startswith("register "), output
    assert Path(output.split()[1]).is_relative_to(python.parents[1])


def test_type_checker_accepts_right_calls_and_refuses_each_wrong_one(python, tmp_path):
    """Options, arguments and results of the SDK are typed for those who install it."""
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(IMPORTED + "\n".join(WRONG))
    cache = ("--cache-dir", tmp_path / "cache", "--config-file", os.devnull)
    command = (sys.executable, "-m", "mypy", *cache, "--python-executable", python, "--strict", "--hide-error-context")
    code, output = run(*command, "right.py", "wrong.py", folder=tmp_path)
    first = IMPORTED.count("\n") + 1
    lines = {int(number) for number in re.findall(r"^wrong\.py:(\d+): error", output, re.MULTILINE)}
    assert code == 1 and "right.py" not in output, output
    assert lines == set(range(first, first + len(WRONG))), output
