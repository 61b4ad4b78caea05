"""A real decoder process, and questions to it and to the same model in this process."""

import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import pytest
import torch
from transformers import AutoModelForImageTextToText

from fsr.common.wire import codec
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import decoder_pb2_grpc, types_pb2
from fsr_core.backbones import ImagePart, KeptImage, Message, TextPart
from helpers import layout
from helpers.preloaded import PreloadedService

ENGINE = os.environ.get("FSR_TEST_ENGINE", "transformers")
# Compiling the model takes vLLM minutes and changes no token. A prefill step takes so few tokens that a picture of 144
# does not fit into one.
ENGINE_OPTIONS = {"enforce_eager": True, "max_num_batched_tokens": 64}
# Positions of one axis, and of three with features for several layers.
IN_EVERY_RUN = ("fsr-tiny", "qwen3_vl")
TINY = pytest.mark.parametrize("checkpoint", ["fsr-tiny"], indirect=True)
# The engine's own count, whether or not anybody takes the tokens: sequences in decode steps, or tokens.
GENERATED = "vllm:generation_tokens_total" if ENGINE == "vllm" else "fsr_decoder_batch_size_sum"
LONG = "red star left of blue circle " * 8
#: name -> visual tokens, question, system prompt
SHAPES = {
    "few": (16, "What colour is the star?", ""),
    "all": (144, "Is there a red star?", ""),
    "one": (1, "Where?", ""),
    "text": (0, "Hello red star", ""),
    "system": (16, "Is there?", LONG),
    "long": (144, LONG * 2, ""),
}


def served(*names):
    """Parameters of `checkpoint`. Those that only repeat what others show run with `make test-cluster`, or on vLLM."""
    often = [name in IN_EVERY_RUN or ENGINE == "vllm" for name in names]
    return [
        pytest.param(name, marks=() if run else pytest.mark.cluster) for name, run in zip(names, often, strict=True)
    ]


@dataclass
class Replica:
    process: subprocess.Popen | PreloadedService
    address: str
    metrics_address: str
    log: Path

    def __post_init__(self):
        self.channel = grpc.insecure_channel(self.address)
        self.stub = decoder_pb2_grpc.DecoderServiceStub(self.channel)

    def decode(self, request, timeout=300):
        return list(self.stub.Decode(request, timeout=timeout))

    def metric(self, name):
        """Sum over the series of a metric; `name` may end in a label that they must have, as in 'x{code="OK"}'."""
        page = urllib.request.urlopen(f"http://{self.metrics_address}/metrics").read().decode()
        name, _, label = name.removesuffix("}").partition("{")
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in page.splitlines()
            if line.startswith(f"{name}{{") and label in line
        )

    def generated(self):
        """Tokens that its engine has generated, perhaps without each answer's first, which the prefill gives."""
        return self.metric(GENERATED)

    def settles(self, **values):
        """Waits until metrics have these values. Returns the values in the end."""
        end = time.monotonic() + 180
        while True:
            now = {name: self.metric(f"fsr_decoder_{name}") for name in values}
            if now == values or time.monotonic() > end:
                return now
            time.sleep(0.02)


@contextmanager
def serving(log, *options, engine=ENGINE):
    """A replica with these options. RuntimeError with its log if it does not start."""
    options = ("--engine", engine, "--port", "0", "--metrics-port", "0", *options)
    log.write_bytes(b"")
    if engine == "vllm":
        command = [sys.executable, "-m", "fsr.decoder", "--engine-options", json.dumps(ENGINE_OPTIONS), *options]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stderr=out, stdout=out)
    else:
        process = PreloadedService("decoder", options, log)
    replica = None
    try:
        end = time.monotonic() + 600
        while replica is None:
            lines = [line for line in log.read_text(errors="replace").splitlines() if '"event": "serving"' in line]
            if lines:
                started = json.loads(lines[0])
                replica = Replica(process, started["address"], started["metrics"], log)
            elif process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(log.read_text(errors="replace")[-4000:])
            else:
                time.sleep(0.1)
        yield replica
    finally:
        if replica is not None:
            replica.channel.close()
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def random_image(model, kept, seed=0, grid=(1, 12, 12), seconds=()):
    """So many random tokens of a picture, or of a video if there are seconds, as an encoder sends them."""
    noise = torch.Generator().manual_seed(seed)
    features = torch.randn(kept, model.info.feature_dim, generator=noise)
    if not getattr(model, "multi_axis", False):
        return KeptImage(features=features)
    places = torch.randperm(math.prod(grid), generator=noise)[:kept].sort().values
    axes = torch.stack(torch.unravel_index(places, grid), 1)
    levels = model.deepstack_layers
    deepstack = torch.randn(levels, kept, model.info.feature_dim, generator=noise) if levels else None
    return KeptImage(
        features=features,
        positions=axes,
        grid=grid,
        deepstack=deepstack,
        video=bool(seconds),
        frame_seconds=seconds,
    )


def on_the_wire(image):
    """An image as the decoder's callers send it."""
    message = types_pb2.CompressedImage(
        features=codec.encode(image.features),
        source_tokens=144,
        positions=[] if image.positions is None else image.positions.flatten().tolist(),
        deepstack=[] if image.deepstack is None else [codec.encode(layer) for layer in image.deepstack],
        video=image.video,
        step_seconds=image.frame_seconds,
    )
    if image.grid is not None:
        steps, rows, columns = image.grid
        message.grid.CopyFrom(types_pb2.Grid(steps=steps, rows=rows, columns=columns))
    return message


@cache
def library_model(name):
    """The library's own class of a checkpoint, both halves."""
    return AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32).eval()


def question(model, visual, text, system="", seed=0):
    """A question about a picture with so many random tokens, or about none."""
    return Ask(model, *([random_image(model, visual, seed)] if visual else []), text, system=system)


class Ask:
    """The same question for the service and for the model in this process. `parts` are text and images."""

    def __init__(self, model, *parts, system=""):
        images = [part for part in parts if isinstance(part, KeptImage)]
        ours, theirs, number = [], [], 0
        if system:
            ours.append(Message("system", (TextPart(system),)))
            theirs.append(types_pb2.Message(role=types_pb2.ROLE_SYSTEM, parts=[types_pb2.Part(text=system)]))
        user, sent = [], []
        for part in parts:
            if isinstance(part, KeptImage):
                user.append(ImagePart(number))
                sent.append(types_pb2.Part(image=number))
                number += 1
            else:
                user.append(TextPart(part))
                sent.append(types_pb2.Part(text=part))
        ours.append(Message("user", tuple(user)))
        theirs.append(types_pb2.Message(role=types_pb2.ROLE_USER, parts=sent))
        self.model = model
        self.prompt = model.prompt(ours, images)
        self.request = pb.DecodeRequest(
            request_id="test",
            fingerprint=model.fingerprint,
            messages=theirs,
            images=[on_the_wire(image) for image in images],
        )

    def with_(self, emitted=(), salt="", **sampling):
        request = pb.DecodeRequest(emitted_token_ids=emitted, cache_salt=salt, sampling=types_pb2.Sampling(**sampling))
        request.MergeFrom(self.request)
        return request

    @cache  # noqa: B019 - the questions live as long as the tests
    def generate(self, count, **options):
        """Ids of the library's greedy decoding, going on after an end of sequence."""
        if self.prompt.position_ids is not None:
            return layout.greedy(library_model(self.model.info.name), *self._laid_out(), count, ends=())
        return self._generate(count, **options)[0, len(self.prompt.token_ids) :].tolist()

    def _generate(self, count, **options):
        ids = self.prompt.token_ids.unsqueeze(0)
        with torch.inference_mode():
            return self.model.model.generate(
                input_ids=ids,
                inputs_embeds=self.prompt.inputs_embeds.unsqueeze(0),
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                **options,
            )

    def generate_logits(self, count):
        """``[count, vocabulary]``: what the library's greedy decoding takes each token from."""
        out = self._generate(count, output_logits=True, return_dict_in_generate=True)
        return torch.cat(out.logits)

    def log_probabilities(self, answer):
        """Of every token of the vocabulary at every place of the prompt and of this answer, by the library's model."""
        if self.prompt.position_ids is not None:
            logits = layout.logits(library_model(self.model.info.name), *self._laid_out(), answer)
        else:
            whole = torch.cat([self.prompt.inputs_embeds, self.model.embed(torch.tensor(answer, dtype=torch.long))])
            with torch.inference_mode():
                logits = self.model.model(inputs_embeds=whole.unsqueeze(0)).logits[0]
        return logits.float().log_softmax(-1)

    def _laid_out(self):
        prompt = self.prompt
        deepstack = None if prompt.deepstack is None else list(prompt.deepstack)
        return prompt.inputs_embeds, prompt.position_ids, prompt.visual_mask, deepstack


def ids(messages):
    return [token for message in messages for token in message.token_ids]


def text(messages):
    return "".join(message.text for message in messages)
