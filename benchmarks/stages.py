"""Shows where the time of a request about one picture goes, stage by stage, from traces of a running system.

    python -m benchmarks.stages --plot docs/img/stages.png --json stages.json       # needs the extra otel

It starts a system, asks questions one after the other, about a new picture and again about the same one, with each
budget in turn, and adds up what lies between the moments that the spans of a trace name, so that all parts of a request
together are the request. Each part is the mean of the middle half of the requests.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from tqdm import tqdm

from benchmarks.costs import free_ports
from benchmarks.goodput import checkpoint
from benchmarks.hop import jpeg
from benchmarks.otlp_receiver import Receiver
from fsr.cli.local_stack import running
from fsr.client import Client

QUESTION, MAX_TOKENS, WARM_UP = "Where is the red star?", 8, 3
ENCODE, DECODE = "fsr.v1.EncoderService/Encode", "fsr.v1.DecoderService/Decode"

# Parts of a request in their order, and whose work each is.
PARTS = {
    "gateway: check, admit, choose": "gateway",
    "to the encoder": "way",
    "decode and preprocess": "encoder",
    "wait for the tower": "encoder",
    "vision tower": "encoder",
    "question": "encoder",
    "selection": "encoder",
    "encoder: the rest": "encoder",
    "back to the gateway": "way",
    "gateway: choose a decoder": "gateway",
    "to the decoder": "way",
    "wait for the engine": "decoder",
    "prefill": "decoder",
    "other tokens": "decoder",
    "decoder: the rest": "decoder",
    "to the caller": "gateway",
}
COLOURS = {"gateway": "#4878a8", "way": "#b8b8b8", "encoder": "#6aa56a", "decoder": "#c98b4a"}


@dataclass(frozen=True)
class Moment:
    """A span's beginning and end in milliseconds, and the service that has sent it."""

    service: str
    name: str
    began: float
    ended: float

    @property
    def milliseconds(self) -> float:
        return self.ended - self.began


def traces(requests: Sequence[bytes]) -> dict[str, list[Moment]]:
    """The spans of each trace, by its id."""
    found: dict[str, list[Moment]] = {}
    for data in requests:
        for resource in trace_service_pb2.ExportTraceServiceRequest.FromString(data).resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            service = names["service.name"].removeprefix("fsr-")
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                began, ended = span.start_time_unix_nano / 1e6, span.end_time_unix_nano / 1e6
                found.setdefault(span.trace_id.hex(), []).append(Moment(service, span.name, began, ended))
    return found


def parts_of(spans: Sequence[Moment]) -> dict[str, float] | None:
    """Milliseconds of each part of a request; None if a span is missing, or if a call was repeated."""
    by_name: dict[tuple[str, str], Moment] = {(span.service, span.name): span for span in spans}
    roots = [span for (service, name), span in by_name.items() if service == "gateway" and name.startswith("chat ")]
    needed = [("gateway", ENCODE), ("encoder", ENCODE), ("gateway", DECODE), ("decoder", DECODE)]
    stages = [*(("encoder", name) for name in ("preprocess", "queue", "tower", "text", "compress"))]
    stages += [("decoder", name) for name in ("queue", "prefill", "decode")]
    if len(roots) != 1 or len(by_name) < len(spans) or not all(key in by_name for key in needed + stages):
        return None
    root, (to_encoder, encoder, to_decoder, decoder) = roots[0], (by_name[key] for key in needed)
    work = [by_name[key].milliseconds for key in stages]
    values = [
        to_encoder.began - root.began,
        encoder.began - to_encoder.began,
        *work[:5],
        encoder.milliseconds - sum(work[:5]),
        to_encoder.ended - encoder.ended,
        to_decoder.began - to_encoder.ended,
        decoder.began - to_decoder.began,
        *work[5:],
        decoder.milliseconds - sum(work[5:]),
        root.ended - decoder.ended,
    ]
    return dict(zip(PARTS, values, strict=True))


def middle(values: Sequence[float]) -> float:
    """The mean of the middle half: steady as a median, and means of parts add up."""
    quarter = len(values) // 4
    return fmean(sorted(values)[quarter : len(values) - quarter])


def measure(model: str, budgets: Sequence[int], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the parts, by label of a bar: number of tokens, and whether the picture was new."""
    receiver = Receiver(keeps=True)
    calls: list[tuple[str, int]] = []
    with ExitStack() as stack:
        endpoint = stack.enter_context(receiver.serving())
        os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = stack.enter_context(running(model, 1, free_ports(40), logs, start_seconds=None))
        client = stack.enter_context(Client(addresses["gateway"]))
        for number in tqdm(range(WARM_UP + rounds), desc=f"requests to {Path(model).name}", file=sys.stderr):
            for place, budget in enumerate(budgets):
                picture = jpeg(len(budgets) * number + place)
                for kind in ("new", "cached"):
                    client.ask(picture, QUESTION, budget=budget, max_tokens=MAX_TOKENS, ignore_eos=True)
                    calls.append((f"{budget} tokens, {kind} picture", number))
        time.sleep(2.0)  # until the last spans are here
    ordered = sorted(traces(receiver.requests()).values(), key=lambda spans: min(span.began for span in spans))
    asked = [spans for spans in ordered if any(span.name.startswith("chat ") for span in spans)]
    parts: dict[str, list[dict[str, float]]] = {}
    for (label, number), spans in zip(calls, asked, strict=True):
        if number >= WARM_UP and (found := parts_of(spans)) is not None:
            parts.setdefault(label, []).append(found)
    return {
        label: {name: round(middle([one[name] for one in all_parts]), 2) for name in PARTS}
        for label, all_parts in parts.items()
    }


def plot(models: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """A bar for each kind of request, a panel for each model."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 2.4 + 2.6 * len(models)), layout="constrained")
    for axes, (model, bars) in zip(figure.subplots(len(models), 1, squeeze=False).flat, models.items(), strict=True):
        whole = max(sum(parts.values()) for parts in bars.values())
        for row, parts in enumerate(bars.values()):
            left = 0.0
            for name, value in parts.items():
                width = max(0.0, value)
                axes.barh(row, width, left=left, color=COLOURS[PARTS[name]], edgecolor="white", linewidth=0.8)
                if width > 0.055 * whole:
                    text = f"{name}\n{width:.1f}"
                    axes.text(left + width / 2, row, text, ha="center", va="center", fontsize=7, wrap=True)
                left += width
            axes.text(left + 0.005 * whole, row, f"{left:.0f} ms", va="center", fontsize=9)
        axes.set_yticks(range(len(bars)), list(bars))
        axes.invert_yaxis()
        axes.set(title=model, xlabel="milliseconds", xlim=(0, 1.08 * whole))
    names = {"gateway": "gateway", "way": "between services", "encoder": "encoder", "decoder": "decoder"}
    figure.legend([Patch(color=COLOURS[key]) for key in names], names.values(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="requests of each kind to fsr-tiny that count")
    parser.add_argument("--large-rounds", type=int, default=4, help="the same to the larger model; 0 leaves it out")
    parser.add_argument("--folder", type=Path, help="folder for the larger model; default: a temporary one")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    models = {"fsr-tiny, 8 tokens an answer": measure("fsr-tiny", (16, 144), options.rounds)}
    if options.large_rounds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = checkpoint(options.folder or Path(scratch) / "llava-135m")
            title = "a language model of SmolLM2-135M's shape, 8 tokens an answer"
            models[title] = measure(str(folder), (64, 576), options.large_rounds)
    text = json.dumps(models, indent=2)
    if options.json is not None:
        options.json.write_text(text + "\n")
    if options.plot is not None:
        plot(models, options.plot)
    print(text)


if __name__ == "__main__":
    main()
