"""`fsr plan`"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsr.cli.load_report import check_plot
from fsr.cli.options import AsJson, parse_budget
from fsr.cli.terminal import fail
from fsr.client.errors import InvalidRequestError

if TYPE_CHECKING:
    from fsr_core.budget import Budget

__all__ = ["plan"]

_LEAST = 1e-3  # of figures in units that the library does not have


def plan(
    model: Annotated[str, typer.Option(help="a well-known model, a checkpoint folder, or a hub id")],
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, b200, l40s or l4; another one with all four --gpu-...")],
    rate: Annotated[float, typer.Option(help="requests a second, each with one picture")],
    budget: Annotated[str, typer.Option(help="budgets to compare with all tokens, as 64 or 0.11 or 64,0.25")] = "0.11",
    text_tokens: Annotated[int, typer.Option(help="tokens of a prompt beside its picture")] = 60,
    answer_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 128,
    visual_tokens: Annotated[
        int | None, typer.Option(help="tokens of a picture before compression; default: the model's usual picture")
    ] = None,
    picture_kb: Annotated[float, typer.Option(min=_LEAST, help="kilobytes of a picture's file")] = 274.0,
    picture_ms: Annotated[
        float, typer.Option(min=_LEAST, help="CPU milliseconds to decode and prepare a picture")
    ] = 19.0,
    gpu_tflops: Annotated[
        float | None, typer.Option(min=_LEAST, help="peak compute of a GPU, dense bf16 TFLOP/s")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=_LEAST, help="memory of a GPU, GB")] = None,
    gpu_bandwidth: Annotated[
        float | None, typer.Option(min=_LEAST, help="peak memory bandwidth of a GPU, TB/s")
    ] = None,
    gpu_price: Annotated[float | None, typer.Option(min=_LEAST, help="dollars an hour of a GPU")] = None,
    core_price: Annotated[float, typer.Option(help="dollars an hour of a CPU core")] = 0.0408,
    gpus_per_decoder: Annotated[int, typer.Option(help="GPUs that share one decoder")] = 1,
    compute_share: Annotated[float, typer.Option(help="share of the peak compute that is reached")] = 0.4,
    bandwidth_share: Annotated[float, typer.Option(help="share of the peak bandwidth that is reached")] = 1.0,
    fill: Annotated[float, typer.Option(help="share of its capacity to which a tier is filled")] = 0.7,
    min_replicas: Annotated[int, typer.Option(help="fewest replicas of a tier")] = 2,
    max_running: Annotated[int, typer.Option(help="most answers that a decoder generates at a time")] = 512,
    as_json: AsJson = False,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="PNG: GPUs and cost by rate, and latency by load")
    ] = None,
) -> None:
    """Say how many replicas a load needs, what they cost and what binds them, with and without compression.

    Nothing is started or downloaded but the configuration of a model whose figures are not built in.

    example: fsr plan --model llava-hf/llava-1.5-7b-hf --gpu h100 --rate 1000 --budget 64

    example: fsr plan --model /models/my-vlm --gpu l40s --gpu-price 1.2 --rate 50 --budget 0.1,0.25 --plot plan.png
    """
    if find_spec("simpy") is None:
        fail("simpy is missing, which simulates the queues; pip install 'fsr-gateway[plan]'")
    # Here and not above, so that other commands start without it.
    from fsr.cli.plan.plot import draw
    from fsr.cli.plan.report import as_json_text, as_table
    from fsr_core.planning.gpus import find_gpu
    from fsr_core.planning.models import model_figures
    from fsr_core.planning.plan import make_plan
    from fsr_core.planning.workload import Assumptions, Workload

    try:
        if plot_file:
            _check_file(plot_file)
        figures = model_figures(model)
        made = make_plan(
            figures,
            find_gpu(
                gpu,
                {
                    "flops": _scaled(gpu_tflops, 1e12),
                    "memory": _scaled(gpu_memory, 1e9),
                    "bandwidth": _scaled(gpu_bandwidth, 1e12),
                    "price": gpu_price,
                },
            ),
            Workload(
                rate=rate,
                visual_tokens=figures.visual_tokens if visual_tokens is None else visual_tokens,
                text_tokens=text_tokens,
                answer_tokens=answer_tokens,
                picture_bytes=round(picture_kb * 1000),
                picture_seconds=picture_ms / 1000,
            ),
            [_budget(part.strip()) for part in budget.split(",")],
            Assumptions(
                fill=fill,
                min_replicas=min_replicas,
                compute_share=compute_share,
                bandwidth_share=bandwidth_share,
                max_running=max_running,
                gpus_per_decoder=gpus_per_decoder,
                core_price=core_price,
            ),
        )
        if plot_file:
            draw(made, plot_file)
    except (InvalidRequestError, ValueError) as error:
        fail(_by_option(str(error)))
    except OSError as error:
        fail(f"--plot: cannot write {plot_file} ({error.strerror})")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    print(as_json_text(made) if as_json else as_table(made))


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def _check_file(path: Path) -> None:
    """Before anything is computed. Raises InvalidRequestError for a file that cannot be written."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidRequestError(f"--plot: cannot write {path}; name a file in a folder that exists")
    check_plot(path)


def _budget(text: str) -> Budget:
    from fsr_core.budget import Budget

    tokens_or_share = parse_budget(text)
    return Budget.of("auto" if tokens_or_share is None else tokens_or_share)


# Fields of the library whose options have another name.
_OPTIONS = {"gpu_flops": "gpu-tflops", "picture_bytes": "picture-kb", "picture_seconds": "picture-ms"}


def _by_option(message: str) -> str:
    """The message of the library with the name of the option in front."""
    match = re.match(r"([a-z_]+)(\.tokens)?: ", message)
    if not match:
        return message
    option = _OPTIONS.get(match[1], match[1].replace("_", "-"))
    return f"--{option}: {message[match.end() :]}"
