"""`fsr ask`"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from fsr.cli import options
from fsr.cli.connection import Connection, connects
from fsr.cli.terminal import fail
from fsr.cli.token_table import token_objects, token_table
from fsr.cli.usage_table import usage_table
from fsr.client.errors import ClientError
from fsr.client.messages import Message
from fsr.client.requests import GenerateOptions
from fsr.client.types import Chunk

__all__ = ["ask"]


@connects
def ask(
    connection: Connection,
    images: Annotated[
        list[str], typer.Argument(help="pictures, as files or URLs; a video file, or a folder of frames, is a video")
    ],
    question: Annotated[str, typer.Argument(help="what to ask, after the pictures")],
    budget: options.BudgetText = options.DEFAULT_BUDGET,
    spread: options.SpreadName = "even",
    fps: options.Fps = None,
    model: options.ModelName = "",
    method: options.MethodName = "",
    option: options.MethodOption = None,
    system: Annotated[str, typer.Option(help="what the model is told before the question: how to answer")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="most tokens of the answer")] = 64,
    temperature: Annotated[float, typer.Option(help="sampling temperature; 0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="sample from the likeliest tokens of this probability together")] = 1.0,
    top_k: Annotated[int, typer.Option(help="sample from so many of the likeliest tokens; 0: from all")] = 0,
    seed: Annotated[int | None, typer.Option(help="makes a sampled answer repeatable")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="text before which the answer ends; may be repeated")] = None,
    top_logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="print the probability of each token, and so many of the likeliest instead"),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="say how the tokens of each picture were chosen")] = False,
    timeout: options.Timeout = 60.0,
    as_json: options.AsJson = False,
) -> None:
    """Ask a question about pictures or a video; print the answer as it streams, then what was saved.

    example: fsr ask scene.png "What colour is the star?" --budget 16

    example: fsr ask clip.mp4 "What happens?" --fps 1 --budget 0.1
    """
    chunks: list[Chunk] = []
    try:
        arguments: GenerateOptions = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
            "stop": stop or [],
            "logprobs": top_logprobs is not None,
            "top_logprobs": top_logprobs or 0,
            "explain": explain,
            **options.compression_choice(budget, spread, model, method, option),
        }
        sources = options.media_sources(images, fps)
        with connection.open() as client:
            if system:
                turns = [Message("system", system), Message("user", question, sources)]
                stream = client.generate(turns, timeout=timeout, **arguments)
            else:  # its errors name the pictures and the question, which are no turns for the user of this command
                stream = client.stream(sources, question, timeout=timeout, **arguments)
            for chunk in stream:
                if not as_json:
                    print(chunk.text if chunks else chunk.text.lstrip(), end="", flush=True)
                chunks.append(chunk)
            # A gateway that answers a question without a model serves this caller only one.
            served = client.models() if as_json and not model else []
    except ClientError as error:
        fail(error)
    usage = chunks[-1].usage if chunks else None
    if usage is None:
        fail("the gateway ended its stream early; see its logs")
    kept = [image for chunk in chunks for image in chunk.images]
    choices = [choice for chunk in chunks for choice in chunk.token_choices]
    if as_json:
        answer: dict[str, Any] = {
            "answer": "".join(chunk.text for chunk in chunks).strip(),
            "finish_reason": chunks[-1].finish_reason,
            "model": served[0].model if served else model,
            "method": usage.method,
            "usage": asdict(usage),
        }
        answer |= {"images": [asdict(image) for image in kept]} if explain else {}
        answer |= {"tokens": token_objects(choices)} if top_logprobs is not None else {}
        print(json.dumps(answer))
    else:
        print("\n")
        Console().print(usage_table(usage, kept))
        if choices:
            Console().print("\n", token_table(choices))
