"""Rebuilds the embedded model's weights: `python -m fsr_core.tiny.train`.

Stages: `vision` (CLIP pair), `layout` (language model on scenes in words; independent of `vision`), `images`
(projector and language model on pictures), `export` (the hub's folder). Each stage writes a checkpoint; a run that
was stopped goes on with the first stage that has none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fsr_core.tiny import WEIGHTS
from fsr_core.tiny.language import Trainer, Turns, train_images, train_layout
from fsr_core.tiny.model import language_tokenizer, new_models, save
from fsr_core.tiny.pool import load_pool
from fsr_core.tiny.vision import train_vision

STAGES = ("vision", "layout", "images", "export")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fsr_core.tiny.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m fsr_core.tiny.train --work runs/tiny --out runs/tiny/weights",
    )
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="one stage, or all in order")
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="folder for drawn scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder that the finished checkpoint is written to")
    parser.add_argument("--scenes", type=int, default=16_000, help="training scenes to draw")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--minutes", type=float, default=45.0, help="most that one stage may take")
    parser.add_argument("--steps", type=int, default=4000, help="most steps of one stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.work.mkdir(parents=True, exist_ok=True)
    clip, llava = new_models(options.seed)
    pool = load_pool(options.work, "train", options.scenes)
    trainer = Trainer(llava, Turns(language_tokenizer()), pool, options.work, options.seed)
    wanted = STAGES if options.stage == "all" else (options.stage,)
    seconds = options.minutes * 60

    def load(name: str, model: torch.nn.Module) -> None:
        path = options.work / f"{name}.pt"
        if not path.exists():
            raise SystemExit(f"--stage: {path} is missing; run the stage {name!r} first (or --stage all)")
        model.load_state_dict(torch.load(path, weights_only=True))

    for stage in wanted:
        if stage == "export" or (options.stage == "all" and (options.work / f"{stage}.done").exists()):
            continue
        if stage == "vision":
            if (options.work / "clip.pt").exists():
                load("clip", clip)
            train_vision(clip, pool, options.steps, 48, options.work, seconds, options.seed)
        elif stage == "layout":
            known = (options.work / "layout.pt").exists()
            if known:
                load("layout", llava)
            train_layout(trainer, options.steps, seconds, all_kinds_at=0 if known else 1000)
        else:
            load("clip", clip)
            load("layout", llava)
            llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
            train_images(trainer, options.steps, seconds)
        (options.work / f"{stage}.done").touch()
    if "export" in wanted:
        load("clip", clip)
        load("images", llava)
        save(clip, llava, options.out)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
