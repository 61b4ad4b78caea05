"""Tokens a second of one engine in its process, without services: an older checkout, this one, and vLLM, in turn.

    python -m benchmarks.random_llava runs/llava-135m
    git worktree add /tmp/before v0.1.0           # or any other commit
    python -m benchmarks.embedded_engine runs/llava-135m --before /tmp/before --vllm-python .venv-vllm/bin/python

Each of `--rows` callers asks `--rounds` questions, one after another, each about new visual tokens. The engines get
the same cores; by itself vLLM would leave one free. It computes in a process of its own, so its CPU time is not shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


async def measure(options: argparse.Namespace) -> dict[str, float]:
    """One run, in this process, with whatever `fsr` is on the path."""
    import torch

    from fsr.decoder.engines.base import Generation
    from fsr.decoder.engines.table import engine_class
    from fsr.decoder.metrics import Metrics
    from fsr.decoder.sampling import Sampling
    from fsr.decoder.settings import DecoderSettings
    from fsr_core.backbones import ImagePart, KeptImage, Message, TextPart

    torch.set_num_threads(options.threads)
    engine_options = {"enforce_eager": True} if options.engine == "vllm" else {}
    settings = DecoderSettings(
        model=str(options.folder), engine=options.engine, kv_memory="2GiB", engine_options=engine_options
    )
    model, engine = await engine_class(options.engine).start(settings, Metrics("benchmark"))
    sampling = Sampling(max_tokens=options.answer, ignore_eos=True)
    message = Message("user", (ImagePart(0), TextPart("What colour is the star left of the circle?")))
    firsts: list[float] = []

    async def ask(seed: int, sampling: Sampling) -> None:
        draw = torch.Generator().manual_seed(seed)
        features = torch.randn(options.visual, model.info.feature_dim, generator=draw) / 50
        prompt = model.prompt([message], [KeptImage(features=features)])
        began, count = time.monotonic(), 0
        async for _ in engine.generate(Generation(request_id=str(seed), prompt=prompt, sampling=sampling)):
            count += 1
            if count == 1:
                firsts.append(time.monotonic() - began)
        assert count == sampling.max_tokens

    async def caller(number: int) -> None:
        for turn in range(options.rounds):
            await ask(1 + number * options.rounds + turn, sampling)

    await ask(0, Sampling(max_tokens=2, ignore_eos=True))  # memory and threads are ready after it
    firsts.clear()
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(caller(number) for number in range(options.rows)))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    await engine.close()
    tokens = options.rows * options.rounds * options.answer
    first = sorted(firsts)[len(firsts) // 2]
    return {"tokens_per_second": tokens / seconds, "cpu_per_token": cpu / tokens, "first_token": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a LLaVA, such as benchmarks.random_llava writes")
    parser.add_argument("--rows", default="8,32", help="callers at a time")
    parser.add_argument("--visual", type=int, default=576)
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=1, help="questions of each caller")
    parser.add_argument("--repeats", type=int, default=1, help="how often the engines take turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, and cores of vLLM")
    parser.add_argument("--before", type=Path, help="an older checkout")
    parser.add_argument("--vllm-python", type=Path, help="Python of vLLM's environment")
    parser.add_argument("--engine", choices=["transformers", "vllm"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        options.rows = int(options.rows)
        print(json.dumps(asyncio.run(measure(options))))
        return
    engines = {"transformers": (sys.executable, "transformers", HERE)}
    if options.before:
        engines = {"transformers, before": (sys.executable, "transformers", options.before.resolve())} | engines
    if options.vllm_python:
        engines["vllm"] = (str(options.vllm_python), "vllm", HERE)
    shape = [f"--{name}={getattr(options, name)}" for name in ("visual", "answer", "rounds", "threads")]
    print("| rows | engine | tokens/s | TTFT p50, s | CPU ms a token |\n| --: | :-- | --: | --: | --: |")
    for rows in options.rows.split(","):
        for _ in range(options.repeats):
            for name, (python, engine, source) in engines.items():
                path = os.pathsep.join(str(source / part) for part in ("services", "protos", "."))
                command = [python, __file__, str(options.folder), *shape, f"--rows={rows}", f"--engine={engine}"]
                environment = os.environ | {"PYTHONPATH": path, "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}"}
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
                run = json.loads(done.stdout.splitlines()[-1])
                cpu = f"{1000 * run['cpu_per_token']:.0f}" if engine == "transformers" else ""
                print(
                    f"| {rows} | {name} | {run['tokens_per_second']:.1f} | {run['first_token']:.1f} | {cpu} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
