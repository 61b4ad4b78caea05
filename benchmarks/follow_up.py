"""Time to first token of a first and of a second question about the same picture.

The second question skips the vision tower: the encoder still has the features. Each picture is asked about twice, in
one run, so that both figures see the same machine.

example: python benchmarks/follow_up.py --pictures 40 --budget 16
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from fsr_core.tiny.scenes import draw, make_scene
from services.client import Client, Usage
from services.client.build import parse_budget
from services.client.up import running

FIRST, SECOND = "What colour is the star?", "Is there a red square?"
WARMUP = 5


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    draw(make_scene(seed)).save(out, "PNG")
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateway", help="address of a running gateway; default: start a system of its own")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--budget", default="16")
    parser.add_argument("--port", type=int, default=50050, help="first port of the system that is started")
    options = parser.parse_args()
    budget, usages = parse_budget(options.budget), []
    with ExitStack() as stack:
        address = options.gateway
        if address is None:
            logs = Path(tempfile.mkdtemp(prefix="fsr-logs-"))
            address = stack.enter_context(running("fsr-tiny", 1, options.port, logs))["gateway"]
        client = stack.enter_context(Client(address))
        for seed in range(900_000, 900_000 + options.pictures + WARMUP):
            data = picture(seed)
            usages.append([client.ask(data, question, budget=budget).usage for question in (FIRST, SECOND)])
    measured = usages[WARMUP:]
    hits = [sum(pair[i].cached_images for pair in measured) for i in (0, 1)]

    def median(which: int, stage: str) -> float:
        def value(usage: Usage) -> float:
            return usage.seconds[stage] * 1000

        return statistics.median(value(pair[which]) for pair in measured)

    print("| question | from the cache | encode, median | TTFT, median |\n| --- | --: | --: | --: |")
    for which, name in enumerate(("first", "second")):
        encode, ttft = median(which, "encode"), median(which, "ttft")
        print(f"| {name} | {hits[which]} of {len(measured)} | {encode:.1f} ms | {ttft:.1f} ms |")
    print(f"\nfirst / second: TTFT {median(0, 'ttft') / median(1, 'ttft'):.2f}x")


if __name__ == "__main__":
    main()
