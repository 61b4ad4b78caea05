"""The model, its KV pool, and the forward pass over running sequences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from fsr.decoder.engines.base import Generation, Token
from fsr.decoder.engines.transformers.batch import RunningSequence, forward_inputs
from fsr.decoder.engines.transformers.kv_cache import PooledCache
from fsr.decoder.engines.transformers.kv_slots import KVSlots
from fsr.decoder.engines.transformers.row_attention import attending, use_row_attention
from fsr.decoder.log_probabilities import TokenLogprob, log_probabilities
from fsr.decoder.token_choice import RowOptions, choose_tokens, pad_seen
from fsr_core.backbones import LanguageDecoder

__all__ = ["BatchRunner"]


class BatchRunner:
    """Runs the model on several sequences at a time. One thread alone may call its methods.

    Args:
        kv_bytes: size of the KV pool.
        prefill_tokens: largest number of prompt tokens in one pass. Tokens far behind the prompt's first one cost more,
            because they attend to all before them; a pass has as many fewer of them.
        prefix_block: number of tokens in a block of a cached prefix.
    """

    def __init__(self, model: LanguageDecoder, kv_bytes: int, prefill_tokens: int, prefix_block: int) -> None:
        geometry = model.info.geometry
        self._cost = geometry.cost_model()
        self._bytes_per_token = self._cost.kv_bytes_per_token
        if kv_bytes < self._bytes_per_token:
            raise ValueError(f"kv-memory: {kv_bytes} bytes hold no token; one token takes {self._bytes_per_token}")
        slots = kv_bytes // self._bytes_per_token
        self._cache = PooledCache(geometry.layers, slots)
        self._slots = KVSlots(slots, self._copy_slots, prefix_block)
        use_row_attention(model.model)
        self._model, self._prefill_tokens = model, prefill_tokens

    @property
    def kv_capacity(self) -> int:
        """Bytes of the KV pool."""
        return self._slots.count * self._bytes_per_token

    @property
    def kv_cached(self) -> int:
        """Bytes of prefixes that no running sequence uses."""
        return self._slots.cached * self._bytes_per_token

    def kv_used(self, sequences: Sequence[RunningSequence]) -> int:
        """Bytes of the keys and values of these sequences."""
        return sum(sequence.filled for sequence in sequences) * self._bytes_per_token

    def start(self, generation: Generation) -> RunningSequence:
        """Leases slots for prompt and answer. Raises MemoryError if too few are free."""
        prompt, length = generation.prompt, len(generation.prompt.token_ids)
        max_answer = min(generation.sampling.max_tokens, self._model.info.context_length - length)
        visual = prompt.visual_mask.nonzero()
        # Without the prompt's last token, because the first answer token is computed from it.
        head = prompt.token_ids[: int(visual[0]) if len(visual) else length - 1].tolist()
        lease = self._slots.lease(length + max_answer, head, generation.cache_salt)
        try:
            return RunningSequence(
                generation=generation, lease=lease, max_answer=max_answer, tokens=list(generation.emitted)
            )
        except Exception:
            self._slots.release(lease)
            raise

    def release(self, sequence: RunningSequence) -> None:
        """Frees the slots of a sequence that has ended."""
        self._slots.release(sequence.lease)

    def fit_in_one_prefill(self, sequences: Sequence[RunningSequence]) -> int:
        """How many of the sequences, the first ones, one pass may prefill, the last one in part; at least 1."""
        return len(self._chunks(sequences))

    def _chunks(self, sequences: Sequence[RunningSequence]) -> list[int]:
        """How many tokens of each of the sequences, the first ones, one pass prefills."""
        chunks: list[int] = []
        furthest = 0
        for sequence in sequences:
            furthest = max(furthest, sequence.filled)
            room = self._most_tokens(furthest) - sum(chunks)
            if room <= 0:
                break
            chunks.append(min(sequence.left_to_prefill, room))
        return chunks

    def is_long(self, sequence: RunningSequence) -> bool:
        """Whether its prompt takes more than two passes."""
        return sequence.to_prefill - sequence.lease.cached > 2 * self._prefill_tokens

    def _most_tokens(self, filled: int) -> int:
        """How many tokens after the first `filled` ones cost as much as `prefill_tokens` at the beginning; at least 1.

        Others' answers wait for each pass, so none may take longer because the prompt is long.
        """
        linear, quadratic = self._cost.flops_linear, self._cost.flops_quadratic
        most = linear * self._prefill_tokens + quadratic * self._prefill_tokens**2
        each = linear + 2 * quadratic * filled  # n tokens cost each * n + quadratic * n^2
        return max(1, round(2 * most / (each + sqrt(each**2 + 4 * quadratic * most))))

    @torch.inference_mode()
    def step(self, sequences: Sequence[RunningSequence]) -> list[Token | None]:
        """One pass: the next token of each sequence; None while tokens to prefill remain.

        Those to prefill are as many as `fit_in_one_prefill`.
        """
        chunks = iter(self._chunks([one for one in sequences if not one.prefilled]))
        counts = [1 if one.prefilled else next(chunks) for one in sequences]
        inputs = forward_inputs(sequences, counts, self._model)
        self._cache.new_slots = inputs.new_slots
        with attending(inputs.rows):
            output = self._model.model(**inputs.arguments, past_key_values=self._cache, use_cache=True)
        complete: list[int] = []
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            prefilling = not sequence.prefilled
            sequence.lease.filled += count
            if sequence.prefilled:
                complete.append(row)
                if prefilling:
                    self._slots.share(sequence.lease)
                    sequence.prefill_seconds = time.monotonic() - sequence.started
        tokens: list[Token | None] = [None] * len(sequences)
        if complete:
            chosen = self._next_tokens([sequences[row] for row in complete], output.logits[0, complete])
            for row, token in zip(complete, chosen, strict=True):
                tokens[row] = token
        return tokens

    @torch.inference_mode()
    def _copy_slots(self, source: int, target: int, count: int) -> None:
        self._cache.copy_slots(source, target, count)

    def _next_tokens(self, sequences: Sequence[RunningSequence], logits: Tensor) -> list[Token]:
        """Chooses the next token of each sequence from logits [B, V]."""
        ids = logits.argmax(-1)
        sampled = [row for row, sequence in enumerate(sequences) if not sequence.generation.sampling.is_argmax]
        if sampled:
            ids[sampled] = _sample([sequences[row] for row in sampled], logits[sampled]).to(ids.device)
        likelihoods: dict[int, tuple[float, tuple[TokenLogprob, ...]]] = {}
        wanted = [row for row, sequence in enumerate(sequences) if sequence.generation.sampling.logprobs]
        if wanted:
            counts = [sequences[row].generation.sampling.top_logprobs for row in wanted]
            likelihoods = dict(zip(wanted, log_probabilities(logits[wanted], ids[wanted], counts), strict=True))
        return [
            self._token(sequence, token, *likelihoods.get(row, (None, ())))
            for row, (sequence, token) in enumerate(zip(sequences, ids.tolist(), strict=True))
        ]

    def _token(
        self, sequence: RunningSequence, token: int, logprob: float | None, top: tuple[TokenLogprob, ...]
    ) -> Token:
        """Appends a token to the answer."""
        sequence.tokens.append(token)
        ended = token in self._model.eos_token_ids and not sequence.generation.sampling.ignore_eos
        full = len(sequence.tokens) >= sequence.max_answer
        return Token(
            id=token,
            last=ended or full,
            by_length=full and not ended,
            logprob=logprob,
            top=top,
            prefill_seconds=sequence.prefill_seconds,
            cached_tokens=sequence.lease.cached,
        )


def _sample(sequences: Sequence[RunningSequence], logits: Tensor) -> Tensor:
    """The next tokens [B] of sequences that are not greedy, from logits [B, V]."""
    if logits.device.type == "mps":  # has no fp64
        logits = logits.cpu()
    samplings = [sequence.generation.sampling for sequence in sequences]
    options = RowOptions.of(samplings, [len(sequence.tokens) for sequence in sequences], logits.device)
    seen = pad_seen([sequence.seen() for sequence in sequences], logits.device) if options.any_penalty else None
    return choose_tokens(logits, options, seen)
