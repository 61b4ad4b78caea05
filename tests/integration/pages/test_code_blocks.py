"""Blocks of code on the pages, as far as can be told without running them; tests of e2e run those with requests."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from docs.generate import SETTINGS
from fsr.cli.main import app
from helpers.pages import PAGES, ROOT, blocks, is_example, name_of, sends_requests

LANGUAGES = {"", "js", "json", "python", "sh", "toml", "yaml"}
BLOCKS = [pytest.param(page, block, id=f"{name_of(page)}:{block.line}") for page in PAGES for block in blocks(page)]
COMMANDS = typer.main.get_command(app).commands


def of(*languages):
    return [param for param in BLOCKS if param.values[1].language in languages]


def commands(block):
    """The command lines of a block: words of each, without what the shell does with them."""
    for line in re.sub(r"\\\n", " ", block.code).splitlines():
        for part in re.split(r"&&|\|", line.partition(" # ")[0]):
            try:
                words = shlex.split(part)
            except ValueError:  # a quotation that goes on in the next line, as the body of a request
                continue
            while words and (re.match(r"\w+=", words[0]) or words[0] in ("do", "nohup")):
                del words[0]
            if words:
                if {">", ">>"} & set(words):
                    words = words[: min(words.index(sign) for sign in (">", ">>") if sign in words)]
                yield [word for word in words if word not in ("&", "done")]


def test_every_block_has_a_known_language():
    assert {param.values[1].language for param in BLOCKS} <= LANGUAGES


def test_every_example_of_python_is_run_by_some_test():
    python = [param.values[1] for param in of("python") if is_example(param.values[1])]
    assert [block for block in python if not sends_requests(block) and "fsr_core" not in block.code] == []


@pytest.mark.parametrize(("page", "block"), of("python"))
def test_python_is_valid_and_imports_what_exists(page, block):
    tree = compile(block.code, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("fsr", "fsr_core"):
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize(("page", "block"), of("json"))
def test_json_is_valid(page, block):
    json.loads(re.sub(r", \.\.\.", "", block.code))


@pytest.mark.parametrize(("page", "block"), of("yaml", "toml"))
def test_yaml_and_toml_are_valid(page, block):
    assert yaml.safe_load(block.code) if block.language == "yaml" else tomllib.loads(block.code)


@pytest.mark.parametrize(("page", "block"), of("", "sh"))
def test_commands_and_their_options_exist(page, block):
    for words in commands(block):
        match words:
            case ["fsr", name, *rest]:
                parse_fsr(name, rest)
            case ["python", "-m", module, *rest]:
                parse_module(module, rest)
            case ["make", *targets]:
                assert set(targets) <= make_targets(), targets
            case ["source" | "." | "cd" | "bash" | "sh", *_]:
                pass


def parse_fsr(name, words):
    """As the command would, without running it: unknown options and values out of range are errors."""
    assert name in COMMANDS or name.startswith("-"), name
    if name in COMMANDS and not COMMANDS[name].ignore_unknown_options:
        COMMANDS[name].make_context(name, [word for word in words if word != "..."])


def parse_module(module, words):
    """Whether the module exists, and a service has the options."""
    place = ROOT / ("services" if module.startswith("fsr.") else "") / module.replace(".", "/")
    if module.split(".")[0] in ("fsr", "fsr_core", "benchmarks", "deploy", "docs"):
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    if settings := SETTINGS.get(module.removeprefix("fsr.")):
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert {
            flag.removeprefix("--no-").removeprefix("--").replace("-", "_") for flag in flags
        } <= settings.model_fields.keys()


def make_targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_shell_scripts_are_valid():
    for script in (ROOT / "examples").glob("*.sh"):
        assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b"", Path(script).name
