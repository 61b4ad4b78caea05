"""A real decoder process, and questions to put to it and to the same model in this process."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import grpc
import torch

from fsr.common import codec
from fsr.v1 import decoder_pb2 as pb
from fsr.v1 import decoder_pb2_grpc, types_pb2
from fsr_core.backbones import ImagePart, KeptImage, Message, TextPart

ENGINE = os.environ.get("FSR_TEST_ENGINE", "transformers")
# Compiling the model takes vLLM minutes and changes no token.
OPTIONS = ["--engine-options", '{"enforce_eager": true}'] if ENGINE == "vllm" else []
# What the engine itself counts, whether or not anybody takes it: rows of decode steps, or tokens.
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


@dataclass
class Replica:
    process: subprocess.Popen
    address: str
    metrics_address: str

    def __post_init__(self):
        self.channel = grpc.insecure_channel(self.address)
        self.stub = decoder_pb2_grpc.DecoderServiceStub(self.channel)

    def decode(self, request, timeout=60):
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
        """Tokens that its engine has generated; a first token, which comes from a prefill, may not be among them."""
        return self.metric(GENERATED)

    def settles(self, **wanted):
        """Waits until metrics have these values; returns what they are in the end."""
        end = time.monotonic() + 20
        while True:
            now = {name: self.metric(f"fsr_decoder_{name}") for name in wanted}
            if now == wanted or time.monotonic() > end:
                return now
            time.sleep(0.02)


@contextmanager
def serving(log, *options):
    """A replica with these options; RuntimeError with its log where it does not come up."""
    command = [sys.executable, "-m", "fsr.decoder", "--engine", ENGINE, "--port", "0", "--metrics-port", "0"]
    command += OPTIONS
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *options], stderr=out, stdout=out)
    replica = None
    try:
        end = time.monotonic() + 600
        while replica is None:
            lines = [line for line in log.read_text(errors="replace").splitlines() if '"event": "serving"' in line]
            if lines:
                told = json.loads(lines[0])
                replica = Replica(process, told["address"], told["metrics"])
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


class Ask:
    """The same question for the service and for the model in this process."""

    def __init__(self, model, visual, text, system="", seed=0):
        features = torch.randn(visual, model.info.feature_dim, generator=torch.Generator().manual_seed(seed))
        ours, theirs = [], []
        if system:
            ours.append(Message("system", (TextPart(system),)))
            theirs.append(types_pb2.Message(role=types_pb2.ROLE_SYSTEM, parts=[types_pb2.Part(text=system)]))
        ours.append(Message("user", (*([ImagePart(0)] if visual else []), TextPart(text))))
        parts = [*([types_pb2.Part(image=0)] if visual else []), types_pb2.Part(text=text)]
        theirs.append(types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts))
        images = [types_pb2.CompressedImage(features=codec.encode(features), source_tokens=144)] if visual else []
        self.model = model
        self.prompt = model.prompt(ours, [KeptImage(features=features)] if visual else [])
        self.request = pb.DecodeRequest(
            request_id="test", fingerprint=model.fingerprint, messages=theirs, images=images
        )

    def with_(self, emitted=(), salt="", **sampling):
        request = pb.DecodeRequest(emitted_token_ids=emitted, cache_salt=salt, sampling=types_pb2.Sampling(**sampling))
        request.MergeFrom(self.request)
        return request

    @cache  # noqa: B019 - the questions live as long as the tests
    def generate(self, count, **options):
        """Ids of the model's own greedy `generate`, going on after an end of sequence."""
        ids = self.prompt.token_ids.unsqueeze(0)
        with torch.inference_mode():
            out = self.model.model.generate(
                input_ids=ids,
                inputs_embeds=self.prompt.inputs_embeds.unsqueeze(0),
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                **options,
            )
        return out[0, ids.shape[1] :].tolist()


def ids(messages):
    return [token for message in messages for token in message.token_ids]


def text(messages):
    return "".join(message.text for message in messages)
