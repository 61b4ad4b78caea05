"""What `--scaled-jpeg` of the encoder saves, and what it changes: JPEGs decoded at 1/2, 1/4 or 1/8 of their size.

    python -m benchmarks.scaled_jpeg [--questions 512]

First, CPU time of one thread from a file to a tower's input, by family and size of the file: decoding in full and
scaled, in turn, lower quartiles; and how far the input's bytes are apart. Then the embedded model: fresh scenes, scaled
up to large JPEGs with some noise, as a camera adds it; which tokens are kept, and what is answered about them.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from benchmarks.calibrate import FRESH
from benchmarks.picture_cpu import PROCESSORS, jpeg, prepared, quartiles
from fsr_core import FSR, CompressedTokens
from fsr_core.backbones import ImageFeatures, load_decoder, load_encoder
from fsr_core.backbones.vision.image_processors import sufficient_side
from fsr_core.backbones.vision.pixels import from_pictures
from fsr_core.evaluation.answers import greedy_answers
from fsr_core.pictures import PictureFile
from fsr_core.tiny.questions import KINDS, questions_in_turn
from fsr_core.tiny.scenes import Scene, draw, make_scene

FILES, TIMES = ((1280, 960), (4032, 3024)), (1.0, 2.0)
SIDE, BUDGET, BATCH = 1280, 16, 64


def decode(data: bytes, side: int | None) -> Image.Image:
    return PictureFile(data).decode(side)


def side_of(processor: Any) -> int:
    """As `VisualEncoder.sufficient_side` of the processor's family."""
    if hasattr(processor, "merge_size"):
        return isqrt(processor.size["longest_edge"]) + processor.patch_size * processor.merge_size
    return sufficient_side(processor) or 0


def cpu(rounds: int) -> None:
    """Prints a table of CPU times."""
    print(
        "| processor | JPEG | times | decoded at | in full, ms | scaled, ms | full / scaled | mean difference, of 255 |"
    )
    print("| --- | --- |" + " --: |" * 6)
    for size in FILES:
        data = jpeg(size)
        for name, (kind, settings) in PROCESSORS.items():
            processor = from_pictures(getattr(transformers, kind))(**settings)
            for times in TIMES:
                side = int(times * side_of(processor))
                scaled = decode(data, side)
                if scaled.size == size:
                    print(f"| {name} | {size[0]}x{size[1]} | {times:g} | full size | | | | |", flush=True)
                    continue
                ms = quartiles(
                    {
                        "full": lambda p=processor, d=data: prepared(p, decode(d, None)),
                        "scaled": lambda p=processor, d=data, s=side: prepared(p, decode(d, s)),
                    },
                    rounds,
                )
                one, other = (
                    prepared(processor, picture).inputs["pixel_values"].int()
                    for picture in (decode(data, None), scaled)
                )
                far = float((one - other).abs().float().mean())
                figures = f"{ms['full']:.1f} | {ms['scaled']:.1f} | {ms['full'] / ms['scaled']:.1f} | {far:.2f}"
                at = f"1/{round(size[0] / scaled.width)}"
                print(f"| {name} | {size[0]}x{size[1]} | {times:g} | {at} | {figures} |", flush=True)


def large(scene: Scene) -> bytes:
    """A scene as a large JPEG with some noise."""
    noise = np.random.default_rng(scene.seed).integers(-8, 9, (SIDE, SIDE, 3))
    pixels = np.asarray(draw(scene).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) + noise
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


@torch.inference_mode()
def encoded(files: Sequence[bytes], encoder: Any, side: int | None) -> list[ImageFeatures]:
    """Features of pictures that are decoded in one way."""
    features: list[ImageFeatures] = []
    for start in range(0, len(files), BATCH):
        pictures = [decode(data, side) for data in files[start : start + BATCH]]
        features += encoder.encode_images([encoder.preprocess(picture) for picture in pictures])
    return features


@torch.inference_mode()
def answered(
    features: Sequence[ImageFeatures], questions: Sequence[str], encoder: Any, decoder: Any, budget: int
) -> tuple[list[str], list[CompressedTokens]]:
    """Answers, and the tokens that were kept for them."""
    answers: list[str] = []
    kept: list[CompressedTokens] = []
    for start in range(0, len(features), BATCH):
        part, texts = features[start : start + BATCH], questions[start : start + BATCH]
        words = encoder.encode_instructions(texts)
        samples = [encoder.visual_tokens(image, word) for image, word in zip(part, words, strict=True)]
        chosen = FSR().compress_batch(samples, [budget] * len(samples))
        images = [encoder.assemble(image, one) for image, one in zip(part, chosen, strict=True)]
        answers += greedy_answers(decoder, texts, images)
        kept += chosen
    return answers, kept


def embedded_model(count: int) -> None:
    """Prints a table of tokens kept and answers given."""
    items = questions_in_turn(FRESH, make_scene, tuple(KINDS), count)
    files, texts = [large(scene) for scene, _ in items], [question.text for _, question in items]
    right = [question.answer for _, question in items]
    encoder, decoder = load_encoder("fsr-tiny"), load_decoder("fsr-tiny")
    sides = [int(times * (encoder.sufficient_side() or 0)) for times in TIMES]
    in_full, *scaled = [encoded(files, encoder, side) for side in (None, *sides)]
    print(f"\nJPEGs of {SIDE}x{SIDE}, {sum(map(len, files)) // count // 1000} kB, {count} questions\n")
    print("| tokens | times | decoded at | same tokens | same answers | right | before | now right | now wrong |")
    print("| --: " * 9 + "|")
    for budget in (BUDGET, len(in_full[0].features)):
        before, kept_before = answered(in_full, texts, encoder, decoder, budget)
        for times, side, features in zip(TIMES, sides, scaled, strict=True):
            now, kept = answered(features, texts, encoder, decoder, budget)
            same = [
                np.isin(one.index.numpy(), other.index.numpy()).mean()
                for one, other in zip(kept, kept_before, strict=True)
            ]
            pairs = [(a == r, b == r) for a, b, r in zip(before, now, right, strict=True)]
            shares = [np.mean(same), np.mean([a == b for a, b in zip(before, now, strict=True)])]
            shares += [np.mean([pair[i] for pair in pairs]) for i in (1, 0)]
            cells = " | ".join(f"{share:.1%}" for share in shares)
            changes = f"{pairs.count((False, True))} | {pairs.count((True, False))}"
            at = round(SIDE / decode(files[0], side).width)
            print(f"| {budget} | {times:g} | 1/{at} | {cells} | {changes} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cpu(options.rounds)
    torch.set_num_threads(2)
    embedded_model(options.questions)


if __name__ == "__main__":
    main()
