"""Names on the pages that the code must have: options, variables of the environment, metrics, messages, folders."""

import functools
import re

import pytest
import typer

from deploy.catalogue import catalogue
from docs.generate import SETTINGS, recorded
from fsr.cli.main import app
from helpers.pages import PAGES, ROOT, code_spans, name_of

SOURCES = ("fsr_core", "services", "benchmarks", "deploy", "docs", "tests")
KINDS = (".py", ".yaml", ".yml", ".env", ".Dockerfile")
# Programs of others, whose options stand in a line with their name.
FOREIGN = ("curl", "docker", "ffmpeg", "git", "grpcurl", "kubectl", "npm", "pip", "vllm", ".venv-lmms/")
# Of today; the changelog also names what is gone.
TODAY = [pytest.param(page, id=name_of(page)) for page in PAGES if page.name != "CHANGELOG.md"]


@functools.cache
def code() -> str:
    """All of it, with literals that are split over lines in one piece."""
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in KINDS]
    text = "\n".join(path.read_text() for path in [*files, ROOT / "Makefile"])
    return re.sub(r'"\s*\n\s*f?"', "", text)


@functools.cache
def options() -> set[str]:
    """Of services, of the command `fsr`, and of the other programs here."""
    services = {f"--{name.replace('_', '-')}" for settings in SETTINGS.values() for name in settings.model_fields}
    services |= {f"--no-{name.removeprefix('--')}" for name in services}
    commands = typer.main.get_command(app).commands.values()
    of_fsr = {name for command in commands for parameter in command.params for name in parameter.opts}
    return services | of_fsr | {"--help"} | set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code()))


@functools.cache
def variables() -> set[str]:
    of_services = {
        f"{settings.model_config['env_prefix']}{name.upper()}"
        for settings in SETTINGS.values()
        for name in settings.model_fields
    }
    return of_services | set(re.findall(r"\bFSR_[A-Z_]+\b", code()))


@pytest.mark.parametrize("page", TODAY)
def test_options_of_a_page_exist(page):
    for line in re.sub(r"\\\n", " ", page.read_text()).splitlines():
        if not any(re.search(rf"(?<![\w/-]){re.escape(program)}", line) for program in FOREIGN):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)) - options()
            assert not unknown, f"{sorted(unknown)} in: {line}"


@pytest.mark.parametrize("page", TODAY)
def test_variables_of_a_page_exist(page):
    assert set(re.findall(r"\bFSR_[A-Z_]+[A-Z]\b(?!<)", page.read_text())) - variables() == set()


@pytest.mark.parametrize("page", TODAY)
def test_metrics_of_a_page_exist(page):
    known = {metric.name for metric in catalogue()} | set(re.findall(r"`([\w:]+)`", recorded()))
    others = {"fsr_core", "fsr_gateway", "fsr_volume"}
    named = {name for span in code_spans(page) for name in re.findall(r"(?:^|[( ])((?:ray_)?fsr_\w+)", span)} - others
    assert {name for name in named if re.sub("_(bucket|sum|count)$", "", name) not in known} - known == set()


def test_messages_of_the_troubleshooting_page_exist():
    """The symptoms are what a user sees: a message that was changed must change there too."""
    rows = re.findall(r"^\| ([^|]*) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    messages = [span for row in rows for span in re.findall(r"`([^`]+)`", row) if " " in span]
    assert len(messages) > 8
    assert [message for message in messages if message not in code()] == []


def test_contributing_lists_every_folder_of_the_code():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = set(re.findall(r"^((?:fsr_core|services)(?:/[\w/]*)?)/ ", text, re.MULTILINE))
    files = [path for root in ("fsr_core", "services") for path in (ROOT / root).rglob("*.py")]
    assert listed == {str(path.parent.relative_to(ROOT)) for path in files}
