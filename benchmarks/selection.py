"""What selecting tokens costs: FSR, the same selection with the whole N x N Gram matrix first, and its peers.

"FSR" and "Gram first" select the same tokens; every row of the table checks this. Nearly all of them are scan tokens,
which is the expensive case: focus tokens cost only a sort. CDPruner (arXiv 2506.10967) and DivPrune (2503.02175) are
written like their authors' code, N x N first. That code runs on embeddings as wide as the language model, whatever the
width of FSR's keys. All of them run in PyTorch's inference mode, as they do in the encoder. Medians over repeats in one
run; the first repeats are dropped.

Each shape runs with one sample and with 32, because FSR computes a batch together, and the peers take its samples one
by one: part of what FSR gains in a batch is the gain of batching. 32 samples of more than 1 GiB are left out.

    python -m benchmarks.selection
    python -m benchmarks.selection --shape 576,64,1024 --batch 8 --threads 2 --json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from fsr_core import FSR, VisualTokens

BATCHES = (1, 32)
LARGEST = 2**30  # bytes of a batch of the peers' embeddings
SHAPES = ((144, 16, 128), (576, 64, 1024), (576, 192, 4096), (2880, 320, 1024), (2880, 320, 4096))
WARM_UP = 3
METHOD = FSR(rho=1e-6)  # Focus stops at its first token


def samples(n: int, width: int, batch: int) -> list[VisualTokens]:
    """Tokens in forty clusters with noise, so that some are similar and some are not."""
    rng = torch.Generator().manual_seed(0)
    made = []
    for _ in range(batch):
        centres = torch.randn(40, width, generator=rng)
        keys = centres[torch.randint(0, 40, (n,), generator=rng)] + 0.7 * torch.randn(n, width, generator=rng)
        made.append(VisualTokens(keys, torch.rand(n, generator=rng), torch.rand(n, generator=rng)))
    return made


def gram_first(sample: VisualTokens, first: int, budget: int) -> list[int]:
    """Farthest-point sampling on the whole Gram matrix, and each token's most similar pick, as Refine needs it."""
    unit = F.normalize(sample.features, dim=1)
    gram = unit @ unit.T
    near, picks = gram[first].clone(), [first]
    near[first] = torch.inf
    while len(picks) < budget:
        pick = int(near.argmin())
        torch.maximum(near, gram[pick], out=near)
        near[pick] = torch.inf
        picks.append(pick)
    gram[torch.tensor(picks[1:])].max(0)
    return picks


def cdpruner(sample: VisualTokens, budget: int) -> Tensor:
    """Greedy MAP of the conditional DPP: the kernel of all pairs, then one Cholesky row per pick."""
    unit = F.normalize(sample.features, dim=1)
    relevance = sample.relevance + 1e-6  # drawn from 0..1
    kernel = relevance.unsqueeze(1) * (unit @ unit.T) * relevance
    gain, rows = kernel.diagonal().clone(), kernel.new_zeros(budget, len(unit))
    picks = []
    for step in range(budget):
        pick = gain.argmax()
        rows[step] = (kernel[pick] - rows[:step, pick] @ rows[:step]) / gain[pick].sqrt()
        gain -= rows[step].square()
        gain[pick] = -torch.inf
        picks.append(pick)
    return torch.stack(picks)


def divprune(sample: VisualTokens, budget: int) -> Tensor:
    """The distances of all pairs, then at each step the minimum over all picks so far."""
    unit = F.normalize(sample.features, dim=1)
    distance = 1 - unit @ unit.T
    picks = torch.empty(budget, dtype=torch.int64)
    for step in range(budget):
        near = distance[picks[:step]].amin(0) if step else distance.topk(2, dim=0, largest=False).values[1]
        picks[step] = near.argmax()
    return picks


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a call."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        began = perf_counter()
        work()
        seconds.append(perf_counter() - began)
    return 1000 * median(seconds[WARM_UP:])


@torch.inference_mode()
def measure(n: int, budget: int, width: int, batch: int, peer_width: int, repeats: int) -> dict[str, float]:
    """One row of the table; times are milliseconds per batch."""
    inputs = samples(n, width, batch)
    kept = METHOD.compress_batch(inputs, [budget] * batch)
    firsts = [int(one.priority.argmax()) for one in kept]
    for sample, one, first in zip(inputs, kept, firsts, strict=True):
        if sorted(gram_first(sample, first, budget)) != one.index.tolist():
            raise SystemExit(f"FSR and Gram first differ at N={n}, K={budget}, Dk={width}; one of them is wrong")
    fsr = milliseconds(lambda: METHOD.compress_batch(inputs, [budget] * batch), repeats)
    gram = milliseconds(
        lambda: [gram_first(sample, first, budget) for sample, first in zip(inputs, firsts, strict=True)],
        repeats,
    )
    wide = samples(n, peer_width, batch)
    peers = {
        peer.__name__: milliseconds(lambda peer=peer: [peer(sample, budget) for sample in wide], repeats)
        for peer in (cdpruner, divprune)
    }
    row: dict[str, float] = {"n": n, "k": budget, "dk": width, "batch": batch, "fsr_ms": fsr, "gram_ms": gram}
    row |= {f"{name}_ms": value for name, value in peers.items()}
    return row | {"gram_ratio": gram / fsr, "peer_ratio": min(peers.values()) / fsr}


def _shape(text: str) -> tuple[int, int, int]:
    try:
        n, budget, width = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,K,Dk; write 576,64,1024") from None
    if not 1 <= budget < n or width < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: needs 1 <= K < N and Dk >= 1")
    return n, budget, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=_shape, action="append", metavar="N,K,DK", help="may be given several times")
    parser.add_argument("--batch", type=int, action="append", help="samples per batch; may be given several times")
    parser.add_argument("--peer-width", type=int, default=4096, help="width of the embeddings of CDPruner and DivPrune")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    options = parser.parse_args()
    if min([*(options.batch or BATCHES), options.peer_width, options.repeats, options.threads]) < 1:
        parser.error("--batch, --peer-width, --repeats, --threads: give at least 1")
    torch.set_num_threads(options.threads)
    shapes = options.shape or SHAPES
    rows = [
        measure(*shape, batch, options.peer_width, options.repeats)
        for shape in shapes
        for batch in options.batch or BATCHES
        if options.batch or 4 * batch * shape[0] * max(shape[2], options.peer_width) <= LARGEST
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| N | K | Dk | batch | FSR, ms | Gram first | CDPruner | DivPrune | Gram / FSR | faster peer / FSR |")
    print("|" + " --: |" * 10)
    for row in rows:
        whole = [str(row[key]) for key in ("n", "k", "dk", "batch")]
        figures = ("fsr_ms", "gram_ms", "cdpruner_ms", "divprune_ms", "gram_ratio", "peer_ratio")
        print("| " + " | ".join(whole + [f"{row[key]:.1f}" for key in figures]) + " |")


if __name__ == "__main__":
    main()
