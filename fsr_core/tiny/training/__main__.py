"""Trains the embedded model and writes its weights: `python -m fsr_core.tiny.training`.

There are five stages. `vision` trains the CLIP pair, and `layout` trains the language model on scenes described in
words; they run side by side, on one CPU core each. Then `text` trains CLIP's text tower and its projections into a
narrow joint space, `images` trains projector and language model on pictures, and
`export` writes the folder in the hub's format. Each stage writes a checkpoint every hundred steps. After a stop, run
the same command again: it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from fsr_core.tiny import WEIGHTS
from fsr_core.tiny.model import language_tokenizer, narrow_joint_space, new_models, save
from fsr_core.tiny.training.images import train_images
from fsr_core.tiny.training.language import Trainer, train_layout
from fsr_core.tiny.training.scene_pool import load_pool
from fsr_core.tiny.training.vision import train_texts, train_vision

STEPS = {"vision": 3000, "layout": 1600, "text": 400, "images": 2500}  # of the shipped weights
STAGES = (*STEPS, "export")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fsr_core.tiny.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m fsr_core.tiny.training --work runs/tiny --out runs/tiny/weights",
    )
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="one stage, or all")
    parser.add_argument("--work", type=Path, default=Path("runs/tiny"), help="folder for drawn scenes and checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the finished checkpoint")
    parser.add_argument("--scenes", type=int, default=20_000, help="training scenes to draw")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and of the order of scenes")
    for stage, steps in STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps, help=f"steps of {stage} (default {steps})")
    return parser


def _checkpoint(work: Path, stage: str) -> dict[str, torch.Tensor]:
    path = work / f"{stage}.pt"
    if not path.exists():
        raise SystemExit(f"--stage: {path} is missing; run the stage {stage!r} first, or --stage all")
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return weights


def _side_by_side(arguments: list[str], work: Path, threads: int) -> None:
    """Runs `vision` and `layout` as two processes that share the threads."""
    command = [sys.executable, "-m", "fsr_core.tiny.training", *arguments, "--threads", str(max(1, threads // 2))]
    processes = [subprocess.Popen([*command, "--stage", stage]) for stage in ("vision", "layout")]
    try:
        exit_codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.terminate()
    if any(exit_codes):
        raise SystemExit(f"a stage failed; see above. Checkpoints are in {work}; run the same command to go on")


def main(arguments: list[str] | None = None) -> None:
    """Runs the stages that the options name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.work.mkdir(parents=True, exist_ok=True)
    pool = load_pool(options.work, "train", options.scenes)
    if options.stage == "all":
        _side_by_side(arguments, options.work, options.threads)
    clip, llava = new_models(options.seed)
    trainer = Trainer(llava, language_tokenizer(), pool, options.work, options.seed)
    if options.stage == "vision":
        train_vision(clip, pool, options.vision_steps, 32, options.work, options.seed)
    if options.stage == "layout":
        train_layout(trainer, options.layout_steps)
    if options.stage in ("all", "text", "images"):
        weights = _checkpoint(options.work, "vision")
        clip.load_state_dict({key[5:]: value for key, value in weights.items() if key.startswith("clip.")})
    if options.stage in ("all", "text", "export"):
        narrow_joint_space(clip)
    if options.stage in ("all", "text"):
        train_texts(clip, pool, options.text_steps, 32, options.work, options.seed)
    if options.stage in ("all", "images"):
        llava.load_state_dict(_checkpoint(options.work, "layout"))
        llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
        train_images(trainer, options.images_steps)
    if options.stage in ("all", "export"):
        clip.load_state_dict(_checkpoint(options.work, "text"))
        llava.load_state_dict(_checkpoint(options.work, "images"))
        save(clip, llava, options.out)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
