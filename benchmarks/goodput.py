"""Measures how many more answers a second fewer visual tokens give, on a language model of SmolLM2-135M's shape.

    python -m benchmarks.goodput --json goodput.json
    python -m benchmarks.goodput --engine vllm --decoder-python .venv-vllm/bin/python --engine-cores 1

It writes that model with random weights (see `random_llava`), starts the whole system with it, and drives it with
`fsr load --fresh`: a new picture and question with every request, 64 against all 576 tokens.

With `--engine-cores` the decoder has so many cores to itself, the last ones, and all other processes have the rest. It
does what Kubernetes does for pods with whole CPUs under its static CPU manager, and Compose with `cpuset`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.costs import free_ports
from benchmarks.random_llava import write
from benchmarks.ttft import picture
from fsr.cli.local_stack import running

SHAPE = {"side": 336, "patch": 14, "layers": 30, "hidden": 576, "heads": 9, "kv_heads": 3, "mlp": 1536}
FEW, ALL = 64, 576


def checkpoint(folder: Path) -> Path:
    """The folder, with the model written into it unless it is there already."""
    if not (folder / "model.safetensors").is_file():
        write(folder, **SHAPE)
    return folder


def measure(gateway: str, image: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs of `fsr load`, one for each budget and number of clients."""
    command = [sys.executable, "-m", "fsr.cli.main", "load", str(image), "--fresh", "--gateway", gateway]
    command += ["--clients", options.clients, "--budget", f"{FEW},{ALL}", "--seconds", str(options.seconds)]
    command += ["--max-tokens", str(options.answer), "--ignore-eos", "--warmup", "2", "--timeout", "300"]
    command += ["--bound", str(options.bound), "--json", "-"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return list(json.loads(done.stdout)["runs"])


def rows_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What decides, of each run; 0 for the rates of one without answers."""
    return [
        {
            "clients": int(run["load"]),
            "visual_tokens": int(run["budget"]),
            "answers_per_second": run["requests_per_second"] or 0.0,
            "goodput": run["goodput"] or 0.0,
            "tokens_per_second": run["tokens_per_second"] or 0.0,
            "ttft_p50_ms": None if run["ttft"]["p50"] is None else 1000 * run["ttft"]["p50"],
            "errors": sum(run["errors"].values()),
        }
        for run in runs
    ]


def gains(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as many answers a second there are with few tokens, by number of clients."""
    speed = {(row["clients"], row["visual_tokens"]): row["answers_per_second"] for row in rows}
    return {
        str(clients): speed[clients, FEW] / speed[clients, ALL]
        for clients in dict.fromkeys(clients for clients, _ in speed)
        if speed.get((clients, FEW)) and speed.get((clients, ALL))
    }


def pin_apart(of_engine: Sequence[int], of_others: Sequence[int]) -> None:
    """Decoders run on some cores from now on, all other processes of this benchmark, this one too, on others."""
    everything = psutil.Process().children(recursive=True)
    decoders = [process for process in everything if "fsr.decoder" in process.cmdline()]
    engines = {*decoders, *(child for process in decoders for child in process.children(recursive=True))}
    for process in [psutil.Process(), *everything]:
        for thread in process.threads():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(thread.id, of_engine if process in engines else of_others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder for the model; default: a temporary one")
    parser.add_argument("--clients", default="8", help="numbers of clients, comma-separated")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each run")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--bound", type=float, default=30.0, help="seconds up to which an answer counts for goodput")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--decoder-python", default=sys.executable, help="Python of vLLM's environment")
    parser.add_argument("--engine-cores", type=int, help="cores of the decoder alone; default: all processes share all")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if options.engine_cores is not None and not 1 <= options.engine_cores < len(cores):
        parser.error(f"--engine-cores: {options.engine_cores} of {len(cores)} leave none for one side; give fewer")
    of_engine = cores[len(cores) - (options.engine_cores or 0) :]
    engine_options = {"engine": options.engine}
    if options.engine == "vllm":
        engine_options["engine_options"] = '{"enforce_eager": true}'
        if of_engine:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, of_engine))
    elif of_engine:
        engine_options["threads"] = str(len(of_engine))
    with tempfile.TemporaryDirectory() as scratch:
        folder = checkpoint(options.folder or Path(scratch) / "llava-135m")
        image = Path(scratch) / "picture.png"
        image.write_bytes(picture(0))
        with running(
            str(folder),
            1,
            free_ports(40),
            Path(scratch) / "logs",
            decoder_options=engine_options,
            decoder_python=options.decoder_python,
            start_seconds=None,
        ) as addresses:
            if of_engine:
                pin_apart(of_engine, [core for core in cores if core not in of_engine])
            rows = rows_of(measure(addresses["gateway"], image, options))
    figures = {
        "engine": options.engine,
        "engine_cores": options.engine_cores,
        "answer_tokens": options.answer,
        "rows": rows,
        "times_as_many": gains(rows),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
