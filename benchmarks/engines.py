"""Tokens a second and time to first token of both engines, with a tenth and with all of the visual tokens.

    make test-vllm                                # or another environment with vLLM: --decoder-python
    python -m benchmarks.engines runs/qwen3-vl-115m

It starts the whole system once for each engine and drives it with `fsr load --fresh`: a new picture with every request,
because a repeated one measures vLLM's prefix cache. The checkpoint is written if its folder does not exist.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.random_qwen3_vl import SIDE, write
from fsr.cli.local_stack import running


def measure(gateway: str, picture: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs of `fsr load`, one for each budget and number of clients."""
    command = [sys.executable, "-m", "fsr.cli.main", "load", str(picture), "--fresh", "--gateway", gateway]
    command += ["--clients", options.clients, "--budget", options.budgets, "--seconds", str(options.seconds)]
    command += [
        "--max-tokens",
        str(options.max_tokens),
        "--ignore-eos",
        "--warmup",
        "2",
        "--timeout",
        "300",
        "--json",
        "-",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return list(json.loads(done.stdout)["runs"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint; written if it does not exist")
    parser.add_argument("--decoder-python", default=".venv-vllm/bin/python", help="Python of vLLM's environment")
    parser.add_argument("--budgets", default="0.1,1.0")
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--max-tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--seconds", type=float, default=45.0, help="of each run")
    parser.add_argument("--port", type=int, default=47100, help="first of thirty free ports in a row")
    options = parser.parse_args()
    if not options.folder.is_dir():
        write(options.folder)
    logs = Path(tempfile.mkdtemp(prefix="fsr-logs-"))
    picture = logs / "picture.png"
    Image.effect_noise((SIDE, SIDE), 60).convert("RGB").save(picture)
    engines = {
        "transformers": ({"threads": str(os.cpu_count())}, sys.executable),  # vLLM takes all cores too
        "vllm": ({"engine": "vllm", "engine_options": '{"enforce_eager": true}'}, options.decoder_python),
    }
    print("| engine | clients | visual tokens | tokens/s | answers/s | TTFT p50, ms | errors |")
    print("|:--|--:|--:|--:|--:|--:|--:|")
    for engine, (decoder_options, python) in engines.items():
        with running(
            str(options.folder),
            1,
            options.port,
            logs / engine,
            decoder_options=decoder_options,
            decoder_python=python,
            start_seconds=None,
        ) as addresses:
            for run in measure(addresses["gateway"], picture, options):
                print(
                    f"| {engine} | {run['load']} | {run['visual_tokens']:.0f} | {run['tokens_per_second']:.1f} |"
                    f" {run['requests_per_second']:.2f} | {1000 * run['ttft']['p50']:.0f} |"
                    f" {sum(run['errors'].values())} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
