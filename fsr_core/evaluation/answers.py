"""Answers under one configuration: compress every sample, answer every question greedily, store the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsr_core.backbones import ImagePart, KeptImage, Message, TextPart
from fsr_core.backbones.base import LanguageDecoder, VisualEncoder
from fsr_core.evaluation.code_digests import method_digest
from fsr_core.evaluation.method_configs import MethodConfig
from fsr_core.evaluation.question_sets import EncodedSet

__all__ = ["Outcome", "answer_questions", "cached_answers"]

LONGEST_ANSWER = 5  # tokens; the longest right answer is three words and the end of the turn
BATCH = 128


@dataclass(frozen=True)
class Outcome:
    """Per question of a set: the answer, how many tokens were kept, and how many Focus asked for (K_F unclamped)."""

    answers: list[str]
    kept: list[int]
    focus_wanted: list[int]


@torch.inference_mode()
def answer_questions(
    encoder: VisualEncoder,
    decoder: LanguageDecoder,
    encoded: EncodedSet,
    config: MethodConfig,
    progress: Callable[[int], object],
) -> Outcome:
    """Answers every question of a set under one configuration. `progress` is called with the size of each batch."""
    compressor, outcome = config.compressor(), Outcome([], [], [])
    for start in range(0, len(encoded.items), BATCH):
        part = slice(start, start + BATCH)
        samples = encoded.samples[part]
        kept = compressor.compress_batch(samples, [config.budget or len(sample) for sample in samples])
        images = [encoder.assemble(image, tokens) for image, tokens in zip(encoded.images[part], kept, strict=True)]
        texts = [question.text for _, question in encoded.items[part]]
        outcome.answers.extend(greedy_answers(decoder, texts, images))
        outcome.kept.extend(len(tokens) for tokens in kept)
        outcome.focus_wanted.extend(tokens.focus_wanted for tokens in kept)
        progress(len(samples))
    return outcome


def greedy_answers(decoder: LanguageDecoder, questions: Sequence[str], images: Sequence[KeptImage]) -> list[str]:
    """Greedy answers to one question about each image. Prompts are padded on the left to one length."""
    rows = [
        decoder.prompt([Message("user", (ImagePart(0), TextPart(text)))], [image]).inputs_embeds
        for text, image in zip(questions, images, strict=True)
    ]
    longest = max(len(row) for row in rows)
    embeds = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)
    for i, row in enumerate(rows):
        embeds[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = 1
    model: Any = decoder.model
    ids: Tensor = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
        eos_token_id=list(decoder.eos_token_ids),
        pad_token_id=decoder.eos_token_ids[0],
    )
    return [str(text).strip() for text in decoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def cached_answers(folder: Path, config: MethodConfig, run: Callable[[], Outcome]) -> Outcome:
    """The stored answers of a configuration, if its method's code is the same; else those of `run`, which it stores."""
    path = folder / f"{config.key}-{method_digest(type(config.compressor()))}.json"
    if path.exists():
        return Outcome(**json.loads(path.read_text())["outcome"])
    outcome = run()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    budget = None if config.budget is None else asdict(config.budget)
    entry = {"method": config.method, "options": dict(config.options), "budget": budget, "outcome": asdict(outcome)}
    part.write_text(json.dumps(entry))
    part.rename(path)
    return outcome
