"""Our sampling inside vLLM: the same token for the same logits, seed and position as in every other engine.

vLLM's own generators count draws, so a request that continues the tokens of another replica would draw other numbers.
These processors choose the tokens with :func:`fsr.decoder.token_choice.choose_tokens` and mask all other tokens. vLLM
has two model runners, each with an interface of its own for processors: the first runs on CPUs, the second where Triton
works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondLogitsProcessor

from fsr.decoder.engines.base import Generation
from fsr.decoder.sampling import Sampling
from fsr.decoder.token_choice import RowOptions, choose_tokens, pad_seen

__all__ = ["FirstRunnerProcessor", "SecondRunnerProcessor", "extra_args", "processor_for"]


def processor_for(second_runner: bool) -> str:
    """The processor for a model runner of vLLM, as vLLM wants it named."""
    processor = SecondRunnerProcessor if second_runner else FirstRunnerProcessor
    return f"{processor.__module__}:{processor.__name__}"


def extra_args(generation: Generation) -> dict[str, Any] | None:
    """What the processors need to know of a request, in plain values, because it travels to another process.

    Returns:
        None for a greedy request, which vLLM itself decodes.
    """
    if generation.sampling.is_argmax:
        return None
    token_ids, emitted = generation.prompt.token_ids.tolist(), generation.emitted
    seen = [*token_ids, *emitted] if generation.sampling.repetition_penalty != 1 else []
    return {
        "sampling": asdict(generation.sampling),
        "prompt_tokens": len(token_ids),
        "emitted_tokens": len(emitted),
        "seen": seen,
    }


def _sampling(extra: Mapping[str, Any]) -> Sampling:
    return Sampling(**extra["sampling"] | {"stop": tuple(extra["sampling"]["stop"])})


def _keep_only(logits: Tensor, rows: Tensor, tokens: Tensor) -> None:
    """Masks all but one token [R] in the given rows [R] of logits [B, V], in place."""
    logits.index_fill_(0, rows, -torch.inf)
    logits[rows, tokens] = 0.0


@dataclass
class _Answer:
    """A request in the first runner's batch; `output` is vLLM's own list, which grows."""

    sampling: Sampling
    emitted_tokens: int
    seen: Tensor
    output: list[int]

    @property
    def step(self) -> int:
        return self.emitted_tokens + len(self.output)

    def all_seen(self) -> Tensor:
        if self.sampling.repetition_penalty == 1:
            return self.seen
        return torch.cat([self.seen, torch.tensor(self.output, dtype=torch.int64)])


class FirstRunnerProcessor(LogitsProcessor):
    """For vLLM's first model runner. Applies to requests that carry our sampling options; the others are greedy."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._answers: dict[int, _Answer] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._answers.pop(row, None)
        for row, params, _, output in batch_update.added:
            extra = params.extra_args
            self._answers.pop(row, None)
            if extra and "sampling" in extra:
                seen = torch.tensor(extra["seen"], dtype=torch.int64)
                self._answers[row] = _Answer(_sampling(extra), extra["emitted_tokens"], seen, output)
        for first, second, direction in batch_update.moved:
            from_first, from_second = self._answers.pop(first, None), self._answers.pop(second, None)
            if from_first is not None:
                self._answers[second] = from_first
            if direction == MoveDirectionality.SWAP and from_second is not None:
                self._answers[first] = from_second

    def apply(self, logits: Tensor) -> Tensor:
        if self._answers:
            device, answers = logits.device, list(self._answers.values())
            rows = torch.tensor(list(self._answers)).to(device, non_blocking=True)
            options = RowOptions.of([answer.sampling for answer in answers], [a.step for a in answers], device)
            seen = pad_seen([answer.all_seen() for answer in answers], device) if options.any_penalty else None
            _keep_only(logits, rows, choose_tokens(logits[rows], options, seen))
        return logits


class SecondRunnerProcessor(SecondLogitsProcessor):
    """For vLLM's second model runner. Applies to requests that carry our sampling options; the others are greedy.

    State belongs to a *slot*, which a request keeps while it runs. The rows of the logits come in any order, and a
    request has several if its next tokens are drafts to verify.
    """

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._requests = req_states
        self._samplings: list[Sampling | None] = [None] * req_states.max_num_reqs
        self._sampled = np.zeros(req_states.max_num_reqs, dtype=bool)
        self._prompt_tokens = np.zeros(req_states.max_num_reqs, dtype=np.int64)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        extra = sampling_params.extra_args
        sampled = bool(extra) and "sampling" in extra
        self._sampled[req_idx] = sampled
        self._samplings[req_idx] = _sampling(extra) if sampled else None
        self._prompt_tokens[req_idx] = extra["prompt_tokens"] if sampled else 0
        return sampled

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        if not self._sampled[ctx.idx_mapping_np].any():
            return logits
        slots, lengths = ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np
        if len(slots) != len(logits):  # several rows a request: only the device knows how many, and their positions
            slots, lengths = ctx.expanded_idx_mapping.cpu().numpy(), ctx.pos.cpu().numpy() + 1
        at = np.flatnonzero(self._sampled[slots])
        slots = slots[at]
        # What a row of an unfinished prefill draws is not used.
        steps = np.maximum(lengths[at] - self._prompt_tokens[slots], 0).tolist()
        samplings = [sampling for slot in slots if (sampling := self._samplings[slot]) is not None]
        options = RowOptions.of(samplings, steps, logits.device)
        rows = torch.from_numpy(at).to(logits.device, non_blocking=True)
        seen = self._seen(ctx, rows) if options.any_penalty else None
        _keep_only(logits, rows, choose_tokens(logits[rows], options, seen))
        return logits

    def _seen(self, ctx: LogitsContext, rows: Tensor) -> Tensor:
        """Tokens before each row's, [R, n]: those that vLLM has committed, and the drafts before the row."""
        slots, drafts = ctx.expanded_idx_mapping[rows].long(), ctx.expanded_local_pos[rows].long()
        longest = int(ctx.seq_lens_upper_bound_np.max())
        places = torch.arange(longest, device=rows.device)
        committed = self._requests.all_token_ids.gpu[slots, :longest].long()
        seen = torch.where(places < (ctx.pos[rows] + 1 - drafts).unsqueeze(1), committed, -1)
        most = int(drafts.max())
        if most == 0:
            return seen
        # The i-th row of a request was fed its i-th draft, and lies i rows behind the request's first row.
        offset = torch.arange(1, most + 1, device=rows.device)
        fed = ctx.input_ids[(rows - drafts).unsqueeze(1) + torch.minimum(offset, drafts.unsqueeze(1))].long()
        return torch.cat([seen, torch.where(offset <= drafts.unsqueeze(1), fed, -1)], 1)
