"""What could beat FSR at an equal budget: every variant of docs/results.md, on the validation split.

    python -m benchmarks.beyond_fsr
    python -m benchmarks.beyond_fsr --limit 64 --json

Prints the combined variants, the single changes to FSR, and a check on the other half of the questions, which had no
influence on any choice. Differences are per question; 95 % bootstrap intervals. Encoded pictures and answers are stored
under --out, so the same command continues after a stop.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fsr_core import Budget, CompressedTokens, VisualTokens, create, register
from fsr_core.evaluation.answers import answer_questions, cached_answers
from fsr_core.evaluation.method_configs import MethodConfig
from fsr_core.evaluation.question_sets import EncodedSet, set_size
from fsr_core.evaluation.runner import Runner
from fsr_core.evaluation.statistics import Resampler
from fsr_core.focus import focus_order, focus_wanted, minmax
from fsr_core.guided import GuidedFSR
from fsr_core.one_by_one import kept, raw_keys
from fsr_core.refine import absorbed, merge
from fsr_core.scan import Keys
from fsr_core.tiny.questions import is_correct


@dataclass(frozen=True, kw_only=True)
class Variant(GuidedFSR):
    """FSR with options that change one thing each; with the defaults it is `FSR`, token for token.

    alpha, rho, relevance_sign, floor, share, pull  as in `GuidedFSR`
    smooth    phi is the mean over 3 x 3 patches; over fewer at the edge
    distinct  Focus leaves out a token whose cosine to an earlier focus token is above this
    scan      takes the token of the largest gain * weight. The gain is the distance to the chosen tokens (eq. 5), the
              added coverage of all tokens as in SCOPE, or the added volume as in CDPruner (greedy MAP of a DPP whose
              kernel is weighted on both sides). The focus set counts as chosen in all three
    weight    (1 - pull) + pull * x, where x is (phi / max phi)**(1/3), or saliency or relevance, both scaled to 0..1
    kappa     as in `FSR`
    near      a token is merged only if its anchor is at most two rows and two columns away
    """

    name: ClassVar[str] = "variant"

    floor: float = 0.0
    share: float = 1.0
    smooth: bool = False
    distinct: float = 1.1
    scan: Literal["distance", "coverage", "dpp"] = "distance"
    weight: Literal["none", "phi", "saliency", "relevance"] = "none"
    kappa: float = 1.0
    near: bool = False

    def priority(self, sample: VisualTokens) -> Tensor:
        phi = super().priority(sample)
        if self.smooth:
            grid = phi.view(1, isqrt(len(phi)), -1)
            phi = torch.nn.functional.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False).flatten()
        return phi

    def _select(self, sample: VisualTokens, k: int) -> CompressedTokens:
        phi, n = self.priority(sample), len(sample)
        alike = Keys(raw_keys(sample).unsqueeze(0)).cosine(torch.arange(n).unsqueeze(0))[0]
        order = focus_order(phi.unsqueeze(0))
        k_focus = int(focus_wanted(phi.unsqueeze(0), order, self.rho))
        focus: list[int] = []
        for token in order[0, :k_focus].tolist():
            if len(focus) < max(1, int(self.share * k)) and not (alike[token, focus] > self.distinct).any():
                focus.append(token)
        scan = self._scanned(alike.double().numpy(), focus, self._weight(sample, phi), k - len(focus))
        merged_into = self._merged(alike, focus, scan)
        features = sample.features.clone()
        anchors, values = merge(features.unsqueeze(0), merged_into.unsqueeze(0), phi.unsqueeze(0))
        features[anchors] = values
        parts = {"focus": torch.tensor(focus), "scan": torch.tensor(scan, dtype=torch.int64)}
        return kept(sample, **parts, features=features[focus + scan], merged_into=merged_into, priority=phi)

    def _weight(self, sample: VisualTokens, phi: Tensor) -> np.ndarray:
        if self.weight == "none":
            return np.ones(len(phi))
        if self.weight == "phi":
            drawn = (phi / phi.max().clamp(min=torch.finfo(torch.float32).tiny)).pow(1 / 3)
        else:
            drawn = minmax(getattr(sample, self.weight).unsqueeze(0))[0]
        return (1 - self.pull + self.pull * drawn).double().numpy()

    def _scanned(self, alike: np.ndarray, focus: list[int], weight: np.ndarray, count: int) -> list[int]:
        """`count` tokens after the focus set, one by one; `alike` [N, N] are cosines, `weight` [N]."""
        near, kernel = np.full(len(alike), -np.inf), alike.copy()  # the kernel is conditioned on the chosen tokens
        taken: list[int] = []
        while len(taken) < len(focus) + count:
            if len(taken) < len(focus):
                pick = focus[len(taken)]
            else:
                if self.scan == "distance":
                    gain = (1 - near) * weight
                elif self.scan == "coverage":
                    gain = (alike - near.clip(0)).clip(0).sum(1) * weight
                else:
                    gain = kernel.diagonal() * weight**2
                gain[taken] = -np.inf
                pick = int(gain.argmax())
            taken.append(pick)
            near = np.maximum(near, alike[pick])
            if self.scan == "dpp" and kernel[pick, pick] > 1e-10:
                kernel -= np.outer(kernel[pick], kernel[pick]) / kernel[pick, pick]
        return taken[len(focus) :]

    def _merged(self, alike: Tensor, focus: list[int], scan: list[int]) -> Tensor:
        """`merged_into` [N], as in `CompressedTokens`."""
        n = len(alike)
        if not scan:
            return torch.full((n,), -1)
        similarity, which = alike[scan].max(0)
        anchor = torch.tensor(scan)[which]
        if self.near:
            place = torch.stack([torch.arange(n) // isqrt(n), torch.arange(n) % isqrt(n)])
            similarity[(place - place[:, anchor]).abs().amax(0) > 2] = -torch.inf
        chosen = torch.zeros(1, n, dtype=torch.bool)
        chosen[0, focus + scan] = True
        into = absorbed(chosen, anchor.unsqueeze(0), similarity.unsqueeze(0), torch.tensor([len(scan)]), self.kappa)[0]
        return into.masked_fill(similarity == -torch.inf, -1)


Row = tuple[str, str, Mapping[str, Any]]  # label, method, options
LIKE_GUIDED = {"floor": 0.2, "share": 0.25, "weight": "phi", "kappa": 0.0}  # what `fsr_guided` is as a `Variant`
TOGETHER: list[Row] = [
    ("`fsr`, the paper's defaults", "fsr", {}),
    ("`cdpruner`, for comparison", "cdpruner", {}),
    ("Focus at most a quarter of K, Scan weighted by phi", "fsr_guided", {"floor": 0.0}),
    ("and saliency at least 0.2 in phi: **`fsr_guided`**", "fsr_guided", {}),
    ("the same, Focus at most half of K", "fsr_guided", {"share": 0.5}),
    ("the same, saliency at least 0.5", "fsr_guided", {"floor": 0.5}),
    ("the same, without saliency", "fsr_guided", {"floor": 1.0}),
    ("the same, Scan by DPP instead of distance", "variant", LIKE_GUIDED | {"scan": "dpp"}),
    ("the same, Focus without its own duplicates", "variant", LIKE_GUIDED | {"distinct": 0.9}),
]
SINGLE: list[Row] = [
    ("centred keys", "fsr", {"centre_keys": True}),
    ("phi smoothed over 3 x 3 patches", "variant", {"smooth": True}),
    ("relevance negated", "fsr", {"relevance_sign": "-"}),
    ("alpha 1", "fsr", {"alpha": 1.0}),
    ("Scan by coverage, unweighted", "variant", {"scan": "coverage"}),
    ("no merging (kappa 0)", "fsr", {"kappa": 0.0}),
    ("merging within two patches only", "variant", {"near": True}),
    ("Scan weighted by saliency", "variant", {"weight": "saliency"}),
    ("alpha 6", "fsr", {"alpha": 6.0}),
    ("Focus at most a quarter of K", "variant", {"share": 0.25}),
    ("Focus at most half of K", "variant", {"share": 0.5}),
    ("Focus without its own duplicates", "variant", {"distinct": 0.9}),
    ("Scan by DPP, weighted by relevance", "variant", {"scan": "dpp", "weight": "relevance"}),
    ("Scan by coverage, weighted by phi", "variant", {"scan": "coverage", "weight": "phi"}),
    ("Scan by coverage, weighted by relevance", "variant", {"scan": "coverage", "weight": "relevance"}),
    ("rho 0.5", "fsr", {"rho": 0.5}),
    ("saliency left out (beta 0)", "fsr", {"beta": 0.0}),
    ("Scan weighted by relevance", "variant", {"weight": "relevance"}),
]
NAMED: list[Row] = [(f"`{name}`", name, {}) for name in ("fsr", "cdpruner", "fsr_guided")]
# Rows (the first one is the reference), budgets, and the half of the questions.
TABLES: dict[str, tuple[list[Row], tuple[int, ...], int]] = {
    "together": (TOGETHER, (4, 8, 12, 16, 32), 0),
    "single": (TOGETHER[:1] + SINGLE, (8, 16, 32), 0),
    "check": (NAMED, (8, 16, 32, 48), 1),
    "check against cdpruner": (NAMED[1:], (8, 16, 32, 48), 1),
}


def verify(samples: Sequence[VisualTokens]) -> None:
    """Raises ValueError unless `Variant` equals FSR, and with `LIKE_GUIDED` equals `fsr_guided`."""
    for (method, options), k in product((("fsr", {}), ("fsr_guided", LIKE_GUIDED)), (4, 16, 48)):
        methods = create(method), create("variant", **options)
        both = (one.compress_batch(samples, [k] * len(samples)) for one in methods)
        for (a, b), part in product(zip(*both, strict=True), ("features", "index", "stage", "merged_into")):
            if not torch.equal(getattr(a, part), getattr(b, part)):
                raise ValueError(f"variant: {part} differ from those of {method} at {k} tokens")


def measure(limit: int, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Figures by table and row, as shares."""
    runner, resampler = Runner("fsr-tiny", out), Resampler(limit)
    total = limit * (2 + sum(len(rows) * len(budgets) for rows, budgets, _ in TABLES.values()))
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    with tqdm(total=total, unit="answer", file=sys.stderr, mininterval=1) as bar:
        every = runner.encoded("validation", 2 * limit, bar.update)
        verify(every.samples[:16])
        for name, (rows, budgets, half) in TABLES.items():
            part = slice(half * limit, (half + 1) * limit)
            encoded = EncodedSet(every.items[part], every.images[part], every.samples[part])
            folder, means = runner.folder / f"validation-{part.start}-{part.stop}", []
            for label, method, options in rows:
                right = {}
                for k in budgets:
                    config, done = MethodConfig(method, Budget(tokens=k), options), bar.n + limit
                    work = partial(answer_questions, runner.encoder, runner.decoder, encoded, config, bar.update)
                    answers = zip(encoded.items, cached_answers(folder, config, work).answers, strict=True)
                    right[k] = [float(is_correct(question, text)) for (_, question), text in answers]
                    bar.update(done - bar.n)  # stored answers count as done
                means.append(np.mean(list(right.values()), axis=0))
                row: dict[str, Any] = {"label": label, "method": method, "options": options}
                row["right"] = {k: float(np.mean(some)) for k, some in right.items()}
                row["difference"] = asdict(resampler.estimate(means[-1] - means[0]))
                figures[name].append(row)
    return figures


def _points(row: Mapping[str, Any]) -> str:
    mean, low, high = (round(100 * row["difference"][key], 1) + 0.0 for key in ("mean", "low", "high"))  # no -0.0
    return f"{mean:+.1f} ({low:+.1f}..{high:+.1f})"


def _wide(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per variant, one column per budget."""
    lines = [f"| variant | {' | '.join(map(str, rows[0]['right']))} | against `{rows[0]['method']}` |"]
    lines.append(f"| --- |{' --: |' * (len(rows[0]['right']) + 1)}")
    for row in rows:
        shares = " | ".join(f"{100 * share:.1f}" for share in row["right"].values())
        lines.append(f"| {row['label']} | {shares} | {'' if row is rows[0] else _points(row) + ' '}|")
    return "\n".join(lines)


def _paired(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two changes per line."""
    cells, half = [f"{row['label']} | {_points(row)}" for row in rows], len(rows) // 2
    lines = ["| change | points | | change | points |", "| --- | --: | --- | --- | --: |"]
    return "\n".join(lines + [f"| {a} | | {b} |" for a, b in zip(cells[:half], cells[half:], strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=1024, help="questions per half")
    parser.add_argument("--out", type=Path, default=Path("runs/beyond"), help="folder for encoded pictures and answers")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    options = parser.parse_args()
    if __spec__ is None:  # stored answers depend on the code of the method, which is found by its module's name
        parser.error("start it as python -m benchmarks.beyond_fsr")
    if options.threads < 1 or not 1 <= options.limit <= set_size("validation") // 2:
        parser.error(f"--threads: give at least 1; --limit: give 1 to {set_size('validation') // 2}")
    torch.set_num_threads(options.threads)
    register("variant", Variant)
    try:
        figures = measure(options.limit, options.out)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    together, single, *checks = figures.values()
    print(_wide(together), _paired(single[1:]), *map(_wide, checks), sep="\n\n")


if __name__ == "__main__":
    main()
