"""`fsr calibrate`"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fsr.cli.calibrate import report
from fsr.cli.calibrate.answering import Answering, ByCheckpoint, ByGateway, check_methods, checked_model
from fsr.cli.calibrate.ladder import DEFAULT_BUDGETS, DEFAULT_METHODS, ladder
from fsr.cli.calibrate.plan import check_output, make_plan
from fsr.cli.calibrate.procedure import Measure
from fsr.cli.calibrate.questions import read_questions
from fsr.cli.calibrate.run import Connect, Folder, Interrupted, carry_out
from fsr.cli.calibrate.scoring import Scorer
from fsr.cli.connection import Connection, connects
from fsr.cli.options import AsJson, MethodOption, ModelName, Timeout, method_options
from fsr.cli.terminal import fail
from fsr.client.errors import ClientError, InvalidRequestError

__all__ = ["calibrate"]


@connects
def calibrate(
    connection: Connection,
    questions: Annotated[
        Path, typer.Argument(help="file with a question on each line (docs/calibrate.md), or a folder of pictures")
    ],
    target: Annotated[float, typer.Option(help="what a budget must keep, as a share: 0.98")],
    question: Annotated[str | None, typer.Option(help="what to ask about pictures without a question")] = None,
    budgets: Annotated[str, typer.Option(help="ladder of budgets: tokens, or shares of them")] = DEFAULT_BUDGETS,
    methods: Annotated[str, typer.Option(help="compression methods to try")] = DEFAULT_METHODS,
    option: MethodOption = None,
    measure: Annotated[
        Measure | None,
        typer.Option(help="what the target is a share of; default: accuracy if there are answers, else agreement"),
    ] = None,
    score: Annotated[
        Literal["exact", "f1"], typer.Option(help="how an answer is compared: as a whole, or by its words")
    ] = "exact",
    score_command: Annotated[
        str | None, typer.Option(help="a command of yours instead, which reads JSON lines and prints a number for each")
    ] = None,
    confidence: Annotated[float, typer.Option(help="probability that what is said to be kept is kept")] = 0.95,
    fps: Annotated[float | None, typer.Option(help="frames per second of videos; default 2")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of an answer")] = 64,
    model: ModelName = "",
    checkpoint: Annotated[
        str | None,
        typer.Option(help="ask no gateway but a checkpoint in this process: fsr-tiny, a folder, or a hub id"),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="of --checkpoint: CLIP checkpoint for relevance, or none")] = None,
    device: Annotated[str, typer.Option(help="of --checkpoint: torch device")] = "cpu",
    dtype: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="of --checkpoint: dtype of its weights")
    ] = "fp32",
    clients: Annotated[int, typer.Option(min=1, max=256, help="questions at a time, each with all tokens and few")] = 2,
    seed: Annotated[int, typer.Option(help="seed of the order of the questions")] = 0,
    pictures: Annotated[int, typer.Option(min=0, max=99, help="most pictures of changed answers to draw")] = 12,
    out: Annotated[Path, typer.Option(help="folder for the answers and all results")] = Path("calibration"),
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest budget that keeps the answers to your own questions, and write it as a policy of the gateway.

    It asks as few questions as decide it. After Ctrl-C the same command goes on. Status 1: no budget keeps the target.

    example: fsr calibrate questions.jsonl --target 0.98

    example: fsr calibrate pictures/ --question "What is in the picture?" --target 0.95 --budgets 64,32,16 --methods fsr

    example: fsr calibrate questions.jsonl --target 0.95 --checkpoint fsr-tiny --out runs/mine
    """
    folder = Folder(out)
    try:
        candidates = ladder(budgets, methods, method_options(option))
        plan = make_plan(
            read_questions(questions, question, fps),
            candidates,
            target=target,
            confidence=confidence,
            measure=measure,
            scorer=Scorer(score, score_command),
            clients=clients,
            seed=seed,
        )
        check_output(out)
        names = [one[0].method or "" for one in candidates]
        if checkpoint is None:
            connect = _gateway(connection, model, names, max_tokens, timeout)
        else:
            connect = _checkpoint(checkpoint, clip, device, dtype, names, candidates[0][0].options, max_tokens)
        finished = carry_out(
            plan,
            connect,
            folder,
            pictures=pictures,
            asked_with={"max_tokens": max_tokens},
            about={"file": str(questions), "seed": seed},
        )
    except Interrupted as interrupted:
        if isinstance(interrupted.__cause__, KeyboardInterrupt):
            fail(f"interrupted; {interrupted}", 130)
        fail(f"{interrupted.__cause__}; {interrupted}")
    except (ClientError, OSError) as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for note in finished.notes:
        print(f"warning: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(finished.figures))
    else:
        print(report.summary(plan, finished.result))
        print(f"report: {out / 'report.md'}")
    if finished.result.chosen is None:
        raise typer.Exit(1)
    if not as_json:
        print(f"policy: python -m fsr.gateway --config {folder.policy}")


def _gateway(connection: Connection, model: str, methods: Sequence[str], max_tokens: int, timeout: float) -> Connect:
    @asynccontextmanager
    async def connect() -> AsyncIterator[tuple[Answering, str]]:
        async with connection.open_async() as client:
            name = checked_model(await client.models(), model, methods)
            yield ByGateway(client, {"model": name, "max_tokens": max_tokens}, timeout), name

    return connect


def _checkpoint(
    checkpoint: str,
    clip: str | None,
    device: str,
    dtype: str,
    methods: Sequence[str],
    options: Mapping[str, Any],
    max_tokens: int,
) -> Connect:
    if any(find_spec(name) is None for name in ("torch", "transformers")):
        raise InvalidRequestError("--checkpoint: needs torch and transformers; pip install 'fsr-gateway[core]'")

    @asynccontextmanager
    async def connect() -> AsyncIterator[tuple[Answering, str]]:
        # Here and not above, so that other commands start without torch.
        from fsr_core.compressor import create
        from fsr_core.compressor import methods as known
        from fsr_core.plug.local_model import LocalModel

        check_methods(methods, known())
        try:
            for name in methods:
                create(name, **options)
        except (ValueError, TypeError) as error:
            raise InvalidRequestError(f"--option: {str(error).removeprefix('method.options: ')}") from error
        try:
            local = LocalModel(checkpoint, clip=clip, device=device, dtype=dtype)
        except ValueError as error:
            raise InvalidRequestError(f"--checkpoint: {error}") from error
        with local:
            yield ByCheckpoint(local, max_tokens), checkpoint

    return connect
