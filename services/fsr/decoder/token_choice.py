"""The next token of each sampled answer in a batch, as tensor operations on the device of the logits.

A row's token depends on its own logits, options, seed and position alone, never on the other rows. So an answer that
moves to another replica or engine continues with the tokens that it would have had:

* the random number comes from a counter-based generator, a function of seed and position;
* weights are integers. Sums of integers are exact, so neither the order of addition nor the number of rows matters,
  both of which differ between devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fsr.decoder.sampling import Sampling

__all__ = ["RowOptions", "choose_tokens", "pad_seen", "philox", "uniform"]

UInt64Array: TypeAlias = NDArray[np.uint64]

_WORD, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
# Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3.
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_ROUNDS = 10

# The likeliest token weighs 2**44. The sum of a row fits into 63 bits for up to 2**19 tokens.
_SCALE = 2.0**44
_USUAL_RANKS = 1024  # top-p seldom keeps more tokens; if it does, all are ranked
_BLOCK = 256
_CPU_ELEMENTS, _GPU_ELEMENTS = 2**18, 2**23  # weighed at a time


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """Sampling options of R rows, as tensors on the device of the logits.

    Attributes:
        temperature: ``[R]`` fp64; 0 takes the likeliest token.
        top_k: ``[R]`` int64; 0 keeps all tokens.
        top_p: ``[R]`` fp64; 1 keeps all tokens.
        repetition_penalty: ``[R]`` fp64; 1 changes nothing.
        random: ``[R]`` fp64, in [0, 1), which token is drawn.
        any_drawn: whether a row has a temperature.
        any_greedy: whether a row has none.
        any_penalty: whether a row has a repetition penalty.
        any_top_p_alone: whether a row has top-p without top-k.
        widest_top_k: the largest top-k of the rows.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    repetition_penalty: Tensor
    random: Tensor
    any_drawn: bool
    any_greedy: bool
    any_penalty: bool
    any_top_p_alone: bool
    widest_top_k: int

    @classmethod
    def of(cls, samplings: Sequence[Sampling], steps: Sequence[int], device: torch.device | str = "cpu") -> RowOptions:
        """The options of R answers that have `steps` tokens so far, those of earlier replicas included."""
        random = uniform([s.seed for s in samplings], steps).tolist()
        options = [
            [s.temperature, s.top_p, s.repetition_penalty, s.top_k, number]
            for s, number in zip(samplings, random, strict=True)
        ]
        table = torch.tensor(options, dtype=torch.float64).to(device, non_blocking=True)
        drawn = [s for s in samplings if s.temperature > 0]
        return cls(
            temperature=table[:, 0],
            top_p=table[:, 1],
            repetition_penalty=table[:, 2],
            top_k=table[:, 3].long(),
            random=table[:, 4],
            any_drawn=bool(drawn),
            any_greedy=len(drawn) < len(samplings),
            any_penalty=any(s.repetition_penalty != 1 for s in samplings),
            any_top_p_alone=any(s.top_k == 0 and s.top_p < 1 for s in drawn),
            widest_top_k=max((s.top_k for s in drawn), default=0),
        )


def pad_seen(seen: Sequence[Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Token ids ``[n_i]`` of R rows as one int64 tensor ``[R, max n_i]``; -1 fills the rest."""
    return pad_sequence(list(seen), batch_first=True, padding_value=-1).to(device, non_blocking=True)


def philox(counter: UInt64Array, key: UInt64Array) -> UInt64Array:
    """Philox4x32-10: four random words ``[4, n]`` for each counter and key.

    Args:
        counter: ``[4, n]``, a word of 32 bits in each element.
        key: ``[2, n]``, likewise.
    """
    even, odd = counter[::2], counter[1::2]
    for number in range(_ROUNDS):
        products = even * _MULTIPLIERS
        even = (products >> _HALF)[::-1] ^ odd ^ ((key + np.uint64(number) * _KEY_STEPS) & _WORD)
        odd = (products & _WORD)[::-1]
    return np.stack([even, odd], 1).reshape(4, -1)


def uniform(seeds: Sequence[int], steps: Sequence[int]) -> NDArray[np.float64]:
    """A random number in [0, 1) for each seed and step, ``[R]``, from the 53 high bits of two words.

    NumPy computes them: they are few, and take many operations. Seeds and steps are below 2**64.
    """
    numbers = np.array([steps, seeds], dtype=np.uint64)
    words = np.stack([numbers & _WORD, numbers >> _HALF], 1)
    high, low, _, _ = philox(np.concatenate([words[0], np.zeros_like(words[0])]), words[1])
    return ((high >> np.uint64(5)) * 2.0**26 + (low >> np.uint64(6))) * 2.0**-53


def choose_tokens(logits: Tensor, options: RowOptions, seen: Tensor | None = None) -> Tensor:
    """The next token of each row, int64 ``[R]``, on the device of the logits.

    Repetition penalty, temperature, top-k and top-p follow each other as in transformers' `generate`. If several tokens
    are equally likely at the edge of top-k or top-p, all of them stay.

    Args:
        logits: ``[R, V]``, any floating dtype; V is at most 2**19.
        options: of the R rows, on the device of the logits.
        seen: ``[R, n]`` int64, the tokens of prompt and answer so far, padded with -1. Only the repetition penalty
            looks at them; None is enough if no row has one.
    """
    scores = logits.float()
    if seen is not None and options.any_penalty:
        scores = _penalised(scores, options.repetition_penalty, seen)
    drawn = torch.cat([_drawn(scores[rows], options, rows) for rows in _chunks(scores)]) if options.any_drawn else None
    if drawn is None or options.any_greedy:
        likeliest = scores.argmax(1)
        return likeliest if drawn is None else torch.where(options.temperature > 0, drawn, likeliest)
    return drawn


def _chunks(scores: Tensor) -> Iterator[slice]:
    """So many rows at a time that their weights stay in a CPU's cache, or take little memory of a GPU."""
    rows = max(1, (_CPU_ELEMENTS if scores.device.type == "cpu" else _GPU_ELEMENTS) // scores.shape[1])
    for start in range(0, len(scores), rows):
        yield slice(start, start + rows)


def _penalised(scores: Tensor, penalty: Tensor, seen: Tensor) -> Tensor:
    """Scores [R, V] fp32; those of seen tokens are divided by the penalty if positive, multiplied by it if negative."""
    rows, size = scores.shape
    shown = torch.zeros(rows, size + 1, dtype=torch.bool, device=scores.device)
    shown.scatter_(1, torch.where(seen < 0, size, seen), True)
    factor = penalty.float().unsqueeze(1)
    return torch.where(shown[:, :size], torch.where(scores < 0, scores * factor, scores / factor), scores)


def _drawn(scores: Tensor, options: RowOptions, rows: slice) -> Tensor:
    """Tokens [r] drawn by inverting the cumulative weights of the rows, in the order of the vocabulary.

    Rows without a temperature, and rows of NaN, give any token.
    """
    temperature = options.temperature[rows].float()
    heat = torch.where(temperature > 0, temperature, 1.0).unsqueeze(1)
    weights = (scores - scores.amax(1, keepdim=True)).div_(heat).exp_().mul_(_SCALE)
    if options.widest_top_k or options.any_top_p_alone:
        least = _least(weights, options.top_k[rows].unsqueeze(1), options.top_p[rows].unsqueeze(1), options)
        weights.masked_fill_(weights < least, 0.0)
    # First the block that the random number falls into, then the token in it: the sums of blocks are soon made.
    blocks = _blocks(weights)
    until_block = blocks.sum(2).cumsum(1)
    total = until_block[:, -1:]
    point = (total.double() * options.random[rows].unsqueeze(1)).long()
    point = torch.minimum(point, total - 1).clamp_(min=0)  # rounding may reach the total, behind the last token
    block = torch.searchsorted(until_block, point, right=True).clamp_(max=blocks.shape[1] - 1)
    inside = blocks.gather(1, block.unsqueeze(2).expand(-1, 1, _BLOCK)).squeeze(1).cumsum(1)
    before = until_block.gather(1, block) - inside[:, -1:]
    token = block * _BLOCK + torch.searchsorted(inside, point - before, right=True)
    return token.squeeze(1).clamp_(max=scores.shape[1] - 1)


def _blocks(weights: Tensor) -> Tensor:
    """Weights [r, V] as integers [r, V / block, block], with zeros behind the last."""
    rows, size = weights.shape
    padded = torch.empty(rows, -(-size // _BLOCK) * _BLOCK, dtype=torch.int64, device=weights.device)
    padded[:, :size].copy_(weights)
    padded[:, size:] = 0
    return padded.view(rows, -1, _BLOCK)


def _least(weights: Tensor, top_k: Tensor, top_p: Tensor, options: RowOptions) -> Tensor:
    """The smallest weight that top-k and top-p keep in each row, [r, 1]; weights [r, V], the others [r, 1]."""
    size = weights.shape[1]
    top_k = top_k.clamp(max=size)
    total = _blocks(weights).sum((1, 2)).unsqueeze(1) if options.any_top_p_alone else None
    width = min(size, max(options.widest_top_k, _USUAL_RANKS if options.any_top_p_alone else 0))
    while True:
        ranked = weights.topk(width, dim=1).values
        cumulative = ranked.long().cumsum(1)
        last = torch.where(top_k > 0, top_k, width) - 1
        mass = cumulative.gather(1, last)
        if total is not None:
            mass = torch.where(top_k > 0, mass, total)
        needed = (mass.double() * top_p).ceil().long()
        if width == size or not bool(((top_k == 0) & (top_p < 1) & (cumulative[:, -1:] < needed)).any()):
            break
        width = size
    count = (cumulative < needed).sum(1, keepdim=True)
    edge = ranked.gather(1, torch.minimum(count, last))
    return torch.where((top_k > 0) | (top_p < 1), edge, 0.0)
