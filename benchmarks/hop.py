"""Measures what the service adds to a picture: the same work in this process, at the encoder, and through the gateway.

    python -m benchmarks.hop --json hop.json

It starts a system as `fsr up` does, with the embedded model. One client compresses a new picture each way in turn, then
the same pictures again, whose features are cached by then; every picture is a JPEG of 800 x 800 and some 58 kB. Then 16
clients send new pictures through the gateway, and cached ones. It prints a table, and writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles

import grpc
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.costs import free_ports
from fsr.cli.local_stack import running
from fsr.cli.options import key_values
from fsr.common.wire.transport import channel_options
from fsr.encoder.compressed_image import compressed_image
from fsr.v1 import encoder_pb2, encoder_pb2_grpc, gateway_pb2, gateway_pb2_grpc, types_pb2
from fsr_core import Budget, create
from fsr_core.backbones import ImageFeatures, load_encoder
from fsr_core.pictures import read_picture
from fsr_core.spread import compress_images
from fsr_core.tiny.scenes import draw, make_scene

QUESTION, BUDGET, SIDE, CLIENTS = "Where is the red star?", 16, 800, 16
WARMUP = 5  # rounds that do not count
Compress = Callable[[bytes], object]


def jpeg(seed: int) -> bytes:
    """A picture that no other seed makes: a scene with some noise, as a camera adds it."""
    scene = draw(make_scene(seed)).resize((SIDE, SIDE))
    noise = np.random.default_rng(seed).integers(-5, 6, (SIDE, SIDE, 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(scene) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=80)
    return file.getvalue()


class InProcess:
    """What the encoder computes, one call after the other: decode, preprocess, tower, text, selection, serialise."""

    def __init__(self) -> None:
        self._model, self._method = load_encoder("fsr-tiny"), create("fsr")
        self._cache: dict[bytes, ImageFeatures] = {}

    @torch.inference_mode()
    def compress(self, picture: bytes) -> bytes:
        model, features = self._model, self._cache.get(picture)
        if features is None:
            (features,) = model.encode_images([model.preprocess(read_picture(picture))])
            self._cache[picture] = features
        (question,) = model.encode_instructions([QUESTION])
        sample = model.visual_tokens(features, question)
        (kept,) = compress_images(self._method, [features], [sample], [Budget.of(BUDGET)], "even")
        laid_out = model.assemble(features, kept)
        image = compressed_image(features, kept, laid_out, types_pb2.DTYPE_UNSPECIFIED, explain=False)
        return encoder_pb2.EncodeResponse(images=[image]).SerializeToString()


def at_encoder(channel: grpc.Channel) -> Compress:
    encode = encoder_pb2_grpc.EncoderServiceStub(channel).Encode
    budget, method = types_pb2.Budget(tokens=BUDGET), types_pb2.Method(name="fsr")

    def compress(picture: bytes) -> object:
        images = [types_pb2.Image(data=picture)]
        return encode(encoder_pb2.EncodeRequest(images=images, instruction=QUESTION, budget=budget, method=method))

    return compress


def through_gateway(channel: grpc.Channel) -> Compress:
    call = gateway_pb2_grpc.GatewayServiceStub(channel).Compress
    budget = types_pb2.Budget(tokens=BUDGET)

    def compress(picture: bytes) -> object:
        images = [types_pb2.Image(data=picture)]
        return call(gateway_pb2.CompressRequest(images=images, instruction=QUESTION, budget=budget))

    return compress


@contextmanager
def connected(addresses: dict[str, str]) -> Iterator[dict[str, Compress]]:
    """Each way by its name. The encoder is called as the gateway calls it: at the replica's own port if it has one."""
    with ExitStack() as stack:

        def channel(address: str) -> grpc.Channel:
            return stack.enter_context(grpc.insecure_channel(address, options=channel_options()))

        proxy = channel(addresses["encoder"])
        describe = encoder_pb2_grpc.EncoderServiceStub(proxy).DescribeEncoder
        own_ports = describe(encoder_pb2.DescribeEncoderRequest()).addresses
        yield {
            "in process": InProcess().compress,
            "encoder": at_encoder(channel(own_ports[0]) if own_ports else proxy),
            "gateway": through_gateway(channel(addresses["gateway"])),
        }


def one_client(ways: dict[str, Compress], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each call, by way, of new pictures and of the same ones again."""
    times: dict[str, dict[str, list[float]]] = {way: {"new": [], "cached": []} for way in ways}
    seeds = iter(range(len(ways) * (WARMUP + rounds)))
    # All of them first: a process that has just computed for long gets the processor later than others.
    drawn = [{way: jpeg(next(seeds)) for way in ways} for _ in tqdm(range(WARMUP + rounds), desc="drawing")]
    for number, pictures in enumerate(tqdm(drawn, desc="one client")):
        for kind in ("new", "cached"):
            for way, compress in ways.items():
                began = time.perf_counter()
                compress(pictures[way])
                if number >= WARMUP:
                    times[way][kind].append(1e3 * (time.perf_counter() - began))
    return times


def many_clients(compress: Compress, pictures: Sequence[bytes], requests: int) -> float:
    """Pictures a second with CLIENTS clients, each of which sends the next one when it has its answer."""
    numbers, lock = iter(range(requests)), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            compress(pictures[number % len(pictures)])

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as threads:
        for future in [threads.submit(client) for _ in range(CLIENTS)]:
            future.result()
    return requests / (time.perf_counter() - began)


def measure(ways: dict[str, Compress], rounds: int, requests: int) -> dict[str, object]:
    """The figures, in milliseconds and pictures a second."""
    times = one_client(ways, rounds)
    milliseconds = {
        way: {
            kind: dict(zip(("p25", "p50", "p75"), quantiles(values, n=4), strict=True)) for kind, values in of.items()
        }
        for way, of in times.items()
    }
    new = [jpeg(10**6 + i) for i in tqdm(range(requests), desc="drawing")]
    many_clients(ways["gateway"], [jpeg(10**7 + i) for i in range(2 * CLIENTS)], 2 * CLIENTS)
    per_second = {
        "new": many_clients(ways["gateway"], new, requests),
        "cached": many_clients(ways["gateway"], new[: 2 * CLIENTS], 2 * requests),
    }
    return {
        "rounds": rounds,
        "picture_bytes": len(new[0]),
        "milliseconds": milliseconds,
        "added_ms": {
            way: {kind: milliseconds[way][kind]["p50"] - milliseconds["in process"][kind]["p50"] for kind in of}
            for way, of in times.items()
            if way != "in process"
        },
        "per_second_16_clients": per_second,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="calls of each kind and way that count")
    parser.add_argument("--requests", type=int, default=400, help="new pictures that 16 clients send")
    parser.add_argument("--encoder", action="append", default=[], help="an option of the encoder, as NAME=VALUE")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        encoder = key_values("--encoder", options.encoder)
        system = running("fsr-tiny", 1, free_ports(40), Path(logs), encoder_options=encoder)
        ways = stack.enter_context(connected(stack.enter_context(system)))
        figures = measure(ways, options.rounds, options.requests)
    print(table(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def table(figures: dict) -> str:  # type: ignore[type-arg]
    """The figures as Markdown."""
    rows = ["| one client | new picture, ms | added | cached, ms | added |", "| --- | --: | --: | --: | --: |"]
    for way, of in figures["milliseconds"].items():
        added = figures["added_ms"].get(way, {})
        cells = [cell for kind in of for cell in (f"{of[kind]['p50']:.1f}", f"{added[kind]:.1f}" if added else "")]
        rows.append(f"| {way} | {' | '.join(cells)} |")
    speed = figures["per_second_16_clients"]
    rows += ["", f"16 clients: {speed['new']:.0f} new pictures/s, {speed['cached']:.0f} cached ones/s"]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
