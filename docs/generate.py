"""Writes what the pages say from the code: options, metrics, versions, the references of SDK and contracts, a picture.

python -m docs.generate            # write them
python -m docs.generate --check    # fail if a committed page differs

Text outside the marked blocks is written by hand and stays as it is.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from deploy.catalogue import catalogue
from deploy.grafana import queries
from deploy.prometheus.local import rules
from docs.proto_reference import grpc_api
from docs.sdk_reference import sdk
from fsr.common.process.settings import ServiceSettings
from fsr.decoder.settings import DecoderSettings
from fsr.encoder.settings import EncoderSettings
from fsr.gateway.options.settings import GatewaySettings
from fsr_core.planning.gpus import GPUS
from fsr_core.planning.models import model_figures
from fsr_core.planning.sizing import plan_case
from fsr_core.planning.workload import Assumptions, Workload

HERE = Path(__file__).parent
SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
}
_NOT_FOR_USERS = ("dev", "service")  # extras


def _type(field: FieldInfo) -> str:
    """The kind of value that an option takes, in a word that the page uses."""
    text = str(field.annotation)
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return ", ".join(part.strip().strip("'") for part in choices[1].split(","))
    for name, word in (
        ("list", "list"),
        ("ByteSize", "bytes"),
        ("Path", "file"),
        ("bool", "on or off"),
        ("int", "integer"),
    ):
        if name in text:
            return word
    return "number" if "float" in text else "text"


def _range(field: FieldInfo) -> str:
    bounds = {
        sign: getattr(rule, sign) for rule in field.metadata for sign in ("ge", "gt", "le", "lt") if hasattr(rule, sign)
    }
    low = f"from {bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}" if "gt" in bounds else ""
    high = f"to {bounds['le']}" if "le" in bounds else f"below {bounds['lt']}" if "lt" in bounds else ""
    return " ".join(part for part in (low, high) if part)


def _value(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    return f"`{','.join(map(str, value)) if isinstance(value, list) else value}`"


def options(service: str) -> str:
    """The table of a service's options."""
    settings = SETTINGS[service]
    prefix = str(settings.model_config["env_prefix"])
    lines = ["| flag | environment | value | default | what it does |", "| --- | --- | --- | --- | --- |"]
    for name, field in settings.model_fields.items():
        kind = " ".join(part for part in (_type(field), _range(field)) if part)
        description = (field.description or "").replace("|", "\\|")
        default = _value(field.get_default(call_default_factory=True))
        flag = f"--{name.replace('_', '-')}"
        lines.append(f"| `{flag}` | `{prefix}{name.upper()}` | {kind} | {default} | {description} |")
    return "\n".join(lines)


def metrics(service: str) -> str:
    """The table of a service's metrics."""
    lines = ["| metric | type | labels | what it counts |", "| --- | --- | --- | --- |"]
    for metric in catalogue():
        if metric.service == service:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines)


def recorded() -> str:
    """The table of the series that recording rules write."""
    lines = ["| series | made of |", "| --- | --- |"]
    for rule in rules():
        if "record" in rule:
            metrics = ", ".join(f"`{name}`" for name in sorted(queries.metrics(rule["expr"])))
            lines.append(f"| `{rule['record']}` | {metrics} |")
    return "\n".join(lines)


def versions() -> str:
    """The table of the versions that each part installs with, from pyproject.toml."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    lines = ["| install | needs |", "| --- | --- |", f"| anything | Python {project['requires-python']} |"]
    for extra, needs in extras.items():
        if extra not in _NOT_FOR_USERS:
            name = f"{project['name']}[{extra}]" if extra else project["name"]
            lines.append(f"| `{name}` | {', '.join(f'`{need}`' for need in needs)} |")
    return "\n".join(lines)


def gpus() -> str:
    """The table of the GPUs that `fsr plan` knows."""
    lines = [
        "| `--gpu` | bf16, TFLOP/s | memory, GB | bandwidth, TB/s | $ an hour | price |",
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for gpu in GPUS.values():
        figures = (gpu.flops / 1e12, gpu.memory / 1e9, gpu.bandwidth / 1e12, gpu.price)
        lines.append(f"| `{gpu.name}` | {' | '.join(f'{figure:g}' for figure in figures)} | {gpu.price_source} |")
    return "\n".join(lines)


def planned() -> str:
    """What three rates of LLaVA-1.5-7B need on H100s, with few tokens and with all."""
    heads = [
        "requests/s",
        "visual tokens",
        "decoders (GPU)",
        "encoders (CPU cores for pictures, GPU)",
        "gateways (cores)",
    ]
    heads += ["through the gateways, in and out", "dollars an hour"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --: |" * len(heads)]
    model = model_figures("llava-hf/llava-1.5-7b-hf")
    for rate in (10, 1000, 100_000):
        for kept in (64, model.visual_tokens):
            work = Workload(rate=rate, visual_tokens=model.visual_tokens)
            case = plan_case(model, GPUS["h100"], work, kept, Assumptions())
            cells = [f"{rate:,}", str(kept), f"{case.decoders.replicas:,}"]
            cells += [f"{case.encoder_cores.replicas:,}, {case.encoders.replicas:,}", f"{case.gateways.replicas:,}"]
            cells += [f"{case.bytes_per_second * 8e-9:,.2f} Gbit/s", f"{case.dollars_per_hour:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def architecture() -> str:
    """The picture of docs/img/architecture.d2, as SVG."""
    command = [Path(sys.executable).with_name("d2"), "--omit-version", "--stdout-format", "svg", "-", "-"]
    text = (HERE / "img/architecture.d2").read_text()
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"docs/img/architecture.d2: {done.stderr.strip()}")
    return done.stdout


def pages() -> Iterator[tuple[Path, str]]:
    """Each page and picture, and the text that it should have."""
    yield HERE / "img/architecture.svg", architecture()
    tables = {
        "configuration": {service: options(service) for service in SETTINGS},
        "metrics": {service: metrics(service) for service in SETTINGS} | {"recorded": recorded()},
        "compatibility": {"versions": versions()},
        "plan": {"gpus": gpus()},
        "scaling": {"planned": planned()},
        "sdk-reference": {"sdk": sdk()},
        "grpc": {"grpc": grpc_api()},
    }
    for name, blocks in tables.items():
        path = HERE / f"{name}.md"
        text = path.read_text()
        for block, table in blocks.items():
            begin, end = f"<!-- begin {block} -->\n", f"\n<!-- end {block} -->"
            before, _, rest = text.partition(begin)
            _, marker, after = rest.partition(end)
            if not marker:
                raise ValueError(f"{path.name}: the block {begin.strip()} ... {end.strip()} is missing")
            text = f"{before}{begin}{table}{end}{after}"
        yield path, text


def main() -> None:
    for path, text in pages():
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in sys.argv[1:]:
            raise SystemExit(f"stale: {path.relative_to(HERE.parent)}; run python -m docs.generate")
        path.write_text(text)


if __name__ == "__main__":
    main()
