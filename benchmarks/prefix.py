"""What the cached prefix saves: prefill of a prompt with a known system text, and of one with a new system text.

Both take turns in one run against one replica. A prompt with its own salt finds nothing in the cache. Medians; the
first requests are dropped.

    python -m benchmarks.prefix
"""

from __future__ import annotations

import argparse
from statistics import median

import grpc

from benchmarks.replica import decoder, request
from fsr.common.wire.transport import channel_options
from fsr.v1 import decoder_pb2, decoder_pb2_grpc

WARM_UP = 3
WORDS = "red star left of blue circle "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fsr-tiny")
    parser.add_argument("--engine", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--visual", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    print("| prompt tokens | of these cached | prefill ms, nothing cached | prefill ms, cached | ratio |")
    print("| --: | --: | --: | --: | --: |")
    with (
        decoder(["--model", options.model, "--engine", options.engine]) as address,
        grpc.insecure_channel(address, options=channel_options()) as channel,
    ):
        stub = decoder_pb2_grpc.DecoderServiceStub(channel)
        info = stub.DescribeDecoder(decoder_pb2.DescribeDecoderRequest())
        for words in (0, 4, 16, 64):
            seconds: dict[str, list[float]] = {"miss": [], "hit": []}
            for turn in range(WARM_UP + options.repeats):
                for kind, salt in (("miss", f"{words}-{turn}"), ("hit", "")):
                    ask = request(info, options.visual, 1, WORDS * words, salt)
                    *_, last = stub.Decode(ask)
                    seconds[kind].append(last.stats.prefill_seconds)
            miss, hit = (1000 * median(seconds[kind][WARM_UP:]) for kind in ("miss", "hit"))
            tokens = last.stats.prompt_tokens
            print(f"| {tokens} | {last.stats.cached_tokens} | {miss:.1f} | {hit:.1f} | {miss / hit:.1f} |", flush=True)


if __name__ == "__main__":
    main()
