"""What the training stages share: Muon for matrices, AdamW for the rest, one schedule, checkpoints to resume from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

WARM_UP = 50  # steps
EVERY = 100  # steps from one checkpoint to the next
DECAY = 0.4  # share of the steps, at the end, over which the learning rate falls to nothing


class Optimiser:
    """Muon on the blocks' weight matrices, where it gets off plateaus sooner; AdamW on embeddings, norms, biases.

    `matrices` and `rest` are their learning rates. `modules` may share parameters; each is stepped once.
    """

    def __init__(self, modules: Iterable[nn.Module], matrices: float, rest: float) -> None:
        named = {id(p): (name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad}
        inner = [p for name, p in named.values() if p.ndim == 2 and "embed" not in name and "heads" not in name]
        chosen = {id(p) for p in inner}
        outer = [p for key, (_, p) in named.items() if key not in chosen]
        self.parameters = inner + outer
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(inner, lr=matrices, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(outer, lr=rest, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = (matrices, rest)

    def step(self, loss: torch.Tensor, step: int, steps: int) -> None:
        """One update at the rate that step `step` of `steps` has."""
        scale = min(1.0, (step + 1) / WARM_UP) * min(1.0, max(0.02, (1 - step / steps) / DECAY))
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.zero_grad(set_to_none=True)
            for group in part.param_groups:
                group["lr"] = rate * scale
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            part.step()

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load(self, state: list[dict[str, Any]]) -> None:
        for part, one in zip(self.parts, state, strict=True):
            part.load_state_dict(one)


def due(step: int, steps: int) -> bool:
    """Whether a checkpoint follows this step."""
    return step % EVERY == EVERY - 1 or step == steps - 1


def write_checkpoint(
    path: Path, step: int, model: nn.Module, optimiser: Optimiser, rng: random.Random, **more: Any
) -> None:
    """Everything a stage needs to go on after `step` steps; the file is never seen half written."""
    state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state(), **more}
    state |= {"rng": rng.getstate(), "torch_rng": torch.get_rng_state()}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def read_checkpoint(path: Path, model: nn.Module, optimiser: Optimiser, rng: random.Random) -> dict[str, Any]:
    """Restores what `write_checkpoint` wrote and gives it back; `{"step": 0}` where there is none."""
    if not path.exists():
        return {"step": 0}
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load(state["optimiser"])
    version, internal, gauss = state["rng"]
    rng.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch_rng"])
    return state
