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


class Muon(torch.optim.Optimizer):
    """Muon in single precision: matrices of one shape are orthogonalised together.

    PyTorch's own multiplies one matrix after the other in bfloat16, which many CPUs have no instructions for. The
    update has the root mean square of AdamW's (`match_rms_adamw`).
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    state = self.state[matrix]
                    average = state.setdefault("average", torch.zeros_like(matrix))
                    average.lerp_(matrix.grad, 1 - group["momentum"])
                    by_shape.setdefault(matrix.shape, []).append((matrix, matrix.grad.lerp(average, group["momentum"])))
            for (rows, columns), pairs in by_shape.items():
                updates = _orthogonal(torch.stack([update for _, update in pairs]))
                rate = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                for (matrix, _), update in zip(pairs, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["decay"]).sub_(update, alpha=rate)


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest matrices with orthonormal rows or columns, nearly: five Newton-Schulz steps. ``[n, r, c]``."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


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
            Muon(matrices, matrix_rate),
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
