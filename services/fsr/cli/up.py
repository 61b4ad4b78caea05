"""`fsr up`"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fsr.cli.local_stack import ServiceEnded, StartFailed, started
from fsr.cli.options import GatewayPort, key_values
from fsr.cli.stack.installed import check_installed, decoder_python
from fsr.cli.stack.options import encoder_replicas, inner_tls_options, own_names, service_options
from fsr.cli.stack.plan import LOOPBACK, Plan
from fsr.cli.terminal import fail, plain
from fsr.client.errors import InvalidRequestError
from fsr.common.network.ports import is_loopback
from fsr.common.process.environment import temporary_folder_problem

__all__ = ["up"]

_PASSED = "another option of the {}, as in docs/configuration.md; may be repeated"


def up(
    model: Annotated[str, typer.Option(help="fsr-tiny, a checkpoint folder, or a hub id")] = "fsr-tiny",
    served_name: Annotated[
        str | None, typer.Option(help="name that callers ask for; default: --model, of a folder its name alone")
    ] = None,
    decoders: Annotated[int, typer.Option(min=1, max=8, help="number of decoder replicas")] = 1,
    encoders: Annotated[int, typer.Option(min=1, max=8, help="number of encoder replicas")] = 1,
    clip: Annotated[
        str | None, typer.Option(help="CLIP or SigLIP checkpoint that scores relevance, or none to go without")
    ] = None,
    device: Annotated[str | None, typer.Option(help="torch device of all weights; default cpu")] = None,
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"] | None, typer.Option(help="dtype of all weights; default fp32")
    ] = None,
    kv_memory: Annotated[
        str | None, typer.Option(help="KV memory of each decoder, such as 512MiB; default: see docs/configuration.md")
    ] = None,
    host: Annotated[
        str, typer.Option(help="address where the gateway listens; 0.0.0.0: also for others", envvar="FSR_GATEWAY_HOST")
    ] = LOOPBACK,
    port: GatewayPort = 20050,
    http_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port of the gateway's HTTP interface; default: --port plus 2")
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            help="API keys of callers, comma-separated; safer in the environment", envvar="FSR_GATEWAY_API_KEYS"
        ),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="file of API keys; see docs/policies.md", envvar="FSR_GATEWAY_API_KEYS_FILE")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate of the gateway; turns TLS on", envvar="FSR_GATEWAY_TLS_CERT")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM key of that certificate", envvar="FSR_GATEWAY_TLS_KEY")
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(help="PEM CA that has to sign the certificates of callers", envvar="FSR_GATEWAY_TLS_CLIENT_CA"),
    ] = None,
    inner_tls: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="mTLS between the services: a folder with tls.crt, tls.key and ca.crt"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="no warning that other machines send keys and questions in plain text")
    ] = False,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="what generates the answers; see docs/decoders.md")
    ] = "transformers",
    decoder_python_path: Annotated[
        Path | None,
        typer.Option(
            "--decoder-python",
            help="Python that runs the decoders; default with vllm: this one if it has vllm, else "
            ".venv-vllm/bin/python",
        ),
    ] = None,
    engine_options: Annotated[
        str | None, typer.Option(metavar="JSON", help="more arguments for vllm; see docs/decoders.md")
    ] = None,
    family_options: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="the encoder's options for the model family; see docs/models.md"),
    ] = None,
    gateway_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help=_PASSED.format("gateway"))
    ] = None,
    encoder_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help=_PASSED.format("encoder"))
    ] = None,
    decoder_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help=_PASSED.format("decoders"))
    ] = None,
    no_restart: Annotated[
        bool, typer.Option("--no-restart", help="end everything when a service ends; default: start it again")
    ] = False,
    logs: Annotated[
        Path | None, typer.Option(help="folder for the services' logs; default: a new temporary folder")
    ] = None,
    start_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="longest wait until all services are ready; default: no limit while they run"),
    ] = None,
    stop_seconds: Annotated[
        float, typer.Option(min=0, help="time that services have to stop before they are killed")
    ] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object of addresses when ready")] = False,
) -> None:
    """Start encoder, decoders and gateway on this machine; Ctrl-C stops them all.

    example: fsr up --decoders 2

    example: fsr up --model /models/llava-1.5-7b-hf --clip openai/clip-vit-large-patch14-336 --device cuda --dtype bf16

    example: fsr up --host 0.0.0.0 --api-keys-file keys.yaml --tls-cert chain.pem --tls-key key.pem

    example: fsr up --gateway-option max_requests=256 --encoder-option cache_mb=1024 --decoder-option threads=2

    example: fsr up --engine vllm --decoder-python /envs/vllm/bin/python --engine-options '{"enforce_eager": true}'
    """
    _check_family_options(family_options)
    python = decoder_python(engine, decoder_python_path)
    check_installed()
    weights = {"model": model, "served_name": served_name, "device": device, "dtype": dtype}
    keys = {"api_keys": api_keys, "api_keys_file": api_keys_file}
    tls = {"tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca, "insecure": insecure or None}
    passed: dict[str, dict[str, str]] = {}
    try:
        for service, texts in (("gateway", gateway_option), ("encoder", encoder_option), ("decoder", decoder_option)):
            named = key_values(f"--{service}-option", texts or [])
            passed[service] = {name.replace("-", "_"): value for name, value in named.items()}
        gateway_tls, replica_tls = inner_tls_options(inner_tls)
        replicas = encoder_replicas(encoders, passed["encoder"].get("device", device or ""))
        of_encoder = {**weights, **replicas, **replica_tls, "clip": clip, "family_options": family_options}
        of_decoder = {
            **weights,
            **replica_tls,
            "kv_memory": kv_memory,
            "engine": engine,
            "engine_options": engine_options,
        }
        plan = Plan(
            port=port,
            http_port=http_port,
            host=host,
            decoders=decoders,
            decoder_python=python,
            gateway=service_options("gateway", {**keys, **tls, **gateway_tls}, passed["gateway"]),
            encoder=service_options("encoder", of_encoder, passed["encoder"]),
            decoder=service_options("decoder", of_decoder, passed["decoder"]),
        )
    except (InvalidRequestError, ValueError) as error:
        fail(error)
    if logs is None and (problem := temporary_folder_problem()):
        fail(problem)
    folder = logs or Path(tempfile.mkdtemp(prefix="fsr-logs-"))
    console, starting = Console(stderr=as_json), f"starting {model} (logs in {folder})"
    report = plain(console)
    if not console.is_terminal:
        report(starting)  # a terminal shows it with a clock instead
    # A first start may download for minutes.
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    progress.add_task(starting, total=None)
    stack = started(plan, folder, report, start_seconds=start_seconds, stop_seconds=stop_seconds)
    try:
        with progress, stack as services:
            progress.stop()
            if as_json:
                print(json.dumps(plan.addresses), flush=True)
            _greet(plan, report, addresses=not as_json)
            try:
                with suppress(KeyboardInterrupt):
                    services.watch(restart=not no_restart)
            except ServiceEnded as error:
                fail(error)  # says so now; what is left is stopped on the way out
            report(f"stopping, which takes up to {stop_seconds:g} s")
    except StartFailed as error:
        fail(own_names(str(error), passed))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _greet(plan: Plan, report: Callable[[str], None], addresses: bool) -> None:
    """Where everything is, and who can reach it."""
    if addresses:
        for name, address in plan.addresses.items():
            report(f"{name:17} {address}")
    scheme = "https" if "tls_cert" in plan.gateway else "http"
    report(f"try it on {scheme}://{plan.addresses['http']}")
    has_keys = plan.gateway.keys() & {"api_keys", "api_keys_file"}
    if has_keys:
        report("callers need a key: fsr ask --api-key KEY")
    if not is_loopback(plan.host):
        report(f"other machines reach the gateway: it listens on {plan.host}")
        if not has_keys:
            report("warning: it asks nobody for a key; set --api-keys-file")
        if scheme == "http" and "insecure" not in plan.gateway:
            what = "API keys and questions come" if has_keys else "questions come"
            report(f"warning: {what} in plain text; set --tls-cert and --tls-key, or --insecure on a trusted network")
    report("ready; Ctrl-C stops everything")


def _check_family_options(text: str | None) -> None:
    """Ends the command, before anything starts, unless the text is a JSON object of texts."""
    if text is None:
        return
    try:
        options = json.loads(text)
    except ValueError as error:
        fail(f"""--family-options: {text!r} is no JSON ({error}); write '{{"video_newlines": "row"}}'""")
    if not isinstance(options, dict) or not all(isinstance(value, str) for value in options.values()):
        fail(f"""--family-options: {text!r} is no object of texts; write '{{"video_newlines": "row"}}'""")
