"""What choosing the next tokens of a batch costs, beside choosing them row by row with transformers' processors.

    python -m benchmarks.sampling [--rows 1,32,256] [--vocabulary 32000,151936] [--threads 1] [--device cpu]

Logits fall with the logarithm of the rank, as those of a trained model do, so that top-p keeps few tokens. Both ways
take turns within a round. Medians over all rounds but the first; logits are on the device, and the chosen tokens end on
the host.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fsr.decoder.sampling import Sampling
from fsr.decoder.token_choice import RowOptions, choose_tokens

KINDS: dict[str, dict[str, float]] = {
    "temperature": {},
    "top-k 50": {"top_k": 50},
    "top-p 0.9": {"top_p": 0.9},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
}


def row_by_row(logits: Tensor, samplings: list[Sampling], generator: torch.Generator) -> list[int]:
    """Each row by itself, with the library's processors and a copy of its scores to the host."""
    empty, tokens = torch.empty(1, 0, dtype=torch.int64, device=logits.device), []
    for row, sampling in zip(logits, samplings, strict=True):
        steps = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
        cumulative = steps(empty, row.float().unsqueeze(0))[0].cpu().double().softmax(-1).cumsum(0)  # type: ignore[arg-type]
        point = cumulative[-1] * torch.rand((), generator=generator, dtype=torch.float64)
        tokens.append(int(torch.searchsorted(cumulative, point, right=True)))
    return tokens


def trained_like(rows: int, vocabulary: int, device: str) -> Tensor:
    """Logits that fall with the logarithm of the rank, in a random order: a power law, as of a language model."""
    ranks = torch.argsort(torch.rand(rows, vocabulary), dim=1)
    return (-1.6 * (ranks + 1).double().log()).float().to(device)


def microseconds(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median wall time of each way, microseconds."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, taken in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken[1:]) * 1e6 for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,32,256", help="numbers of sampled answers in a step")
    parser.add_argument("--vocabulary", default="32000,151936")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| vocabulary | options | rows | row by row, us a row | batch, us a row | times faster |")
    print("|--:|:--|--:|--:|--:|--:|")
    for vocabulary in map(int, options.vocabulary.split(",")):
        for kind, more in KINDS.items():
            for rows in map(int, options.rows.split(",")):
                logits = trained_like(rows, vocabulary, options.device)
                samplings = [Sampling(max_tokens=1, temperature=0.8, seed=row, **more) for row in range(rows)]  # type: ignore[arg-type]
                generator = torch.Generator().manual_seed(0)

                def batch(logits: Tensor = logits, samplings: list[Sampling] = samplings) -> list[int]:
                    chosen = RowOptions.of(samplings, [0] * len(samplings), logits.device)
                    return choose_tokens(logits, chosen).tolist()

                def single(
                    logits: Tensor = logits,
                    samplings: list[Sampling] = samplings,
                    generator: torch.Generator = generator,
                ) -> list[int]:
                    return row_by_row(logits, samplings, generator)

                before, now = (taken / rows for taken in microseconds([single, batch], options.rounds))
                print(f"| {vocabulary} | {kind} | {rows} | {before:.0f} | {now:.0f} | {before / now:.1f} |", flush=True)


if __name__ == "__main__":
    main()
