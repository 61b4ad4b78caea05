"""Starts a decoder replica for a benchmark and builds requests for it. It is imported, not run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import torch

from fsr.common.wire import codec
from fsr.common.wire.transport import channel_options
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def decoder(options: list[str], patience: float = 300.0) -> Iterator[str]:
    """Runs a replica with these options and yields its address; stops it at the end.

    `patience` is the number of seconds that the start may take.
    """
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "fsr.decoder", "--port", address.rpartition(":")[2], "--metrics-port", "0"]
    process = subprocess.Popen([*command, "--log-level", "warning", *options], env=os.environ)
    try:
        end = time.monotonic() + patience
        with grpc.insecure_channel(address, options=channel_options()) as channel:
            stub = decoder_pb2_grpc.DecoderServiceStub(channel)
            while True:
                try:
                    stub.DescribeDecoder(decoder_pb2.DescribeDecoderRequest(), timeout=5)
                    break
                except grpc.RpcError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise SystemExit("error: the decoder did not start; read its log above") from None
                    time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def request(described: decoder_pb2.DescribeDecoderResponse, visual: int, answer: int, system: str = "", salt: str = ""):
    """A request about an image with `visual` kept tokens. The answer has exactly `answer` tokens."""
    system_messages = (
        [types_pb2.Message(role=types_pb2.ROLE_SYSTEM, parts=[types_pb2.Part(text=system)])] if system else []
    )
    parts = [types_pb2.Part(image=0), types_pb2.Part(text="What colour is the star left of the circle?")]
    features = torch.randn(visual, described.model.feature_dim, generator=torch.Generator().manual_seed(0))
    return decoder_pb2.DecodeRequest(
        request_id="benchmark",
        fingerprint=described.model.fingerprint,
        messages=[*system_messages, types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)],
        images=[types_pb2.CompressedImage(features=codec.encode(features), source_tokens=visual)],
        sampling=types_pb2.Sampling(max_tokens=answer, ignore_eos=True),
        cache_salt=salt,
    )
