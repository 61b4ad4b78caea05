"""What all training stages share: the optimiser with its learning-rate schedule, and checkpoints to resume from."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

WARM_UP = 50  # steps
CHECKPOINT_INTERVAL = 100  # steps
DECAY = 0.4  # the learning rate falls during this share of the steps, at the end


class Optimiser:
    """Muon for the blocks' weight matrices, AdamW for embeddings, norms, biases and read-outs.

    Muon leaves plateaus sooner. `matrix_rate` and `other_rate` are the two learning rates. `modules` may share
    parameters; each parameter is updated once a step.
    """

    def __init__(self, modules: Iterable[nn.Module], matrix_rate: float, other_rate: float) -> None:
        named = {id(p): (name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad}
        matrices = [p for name, p in named.values() if p.ndim == 2 and "embed" not in name and "heads" not in name]
        matrix_ids = {id(p) for p in matrices}
        others = [p for key, (_, p) in named.items() if key not in matrix_ids]
        self.parameters = matrices + others
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=matrix_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = (matrix_rate, other_rate)

    def step(self, loss: torch.Tensor, step: int, steps: int) -> None:
        """One update, at the learning rate of step `step` out of `steps`."""
        scale = min(1.0, (step + 1) / WARM_UP) * min(1.0, max(0.02, (1 - step / steps) / DECAY))
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate * scale
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()

    def state(self) -> list[dict[str, Any]]:
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load(self, states: list[dict[str, Any]]) -> None:
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)


def checkpoint_due(step: int, steps: int) -> bool:
    """Whether a checkpoint is written after this step."""
    return step % CHECKPOINT_INTERVAL == CHECKPOINT_INTERVAL - 1 or step == steps - 1


def write_checkpoint(
    path: Path, step: int, model: nn.Module, optimiser: Optimiser, rng: random.Random, **more: Any
) -> None:
    """Writes all that a stage needs to resume after `step` steps. The file appears only when it is complete."""
    state = {"step": step, "model": model.state_dict(), "optimiser": optimiser.state(), **more}
    state |= {"rng": rng.getstate(), "torch_rng": torch.get_rng_state()}
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def read_checkpoint(path: Path, model: nn.Module, optimiser: Optimiser, rng: random.Random) -> dict[str, Any]:
    """Restores what `write_checkpoint` wrote, and returns it; `{"step": 0}` if there is no checkpoint."""
    if not path.exists():
        return {"step": 0}
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load(state["optimiser"])
    version, internal, gauss = state["rng"]
    rng.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch_rng"])
    return state
