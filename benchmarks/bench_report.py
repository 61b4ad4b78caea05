"""The page that `make bench` writes: short tables from the figures of its steps. It is imported, not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.machine import QUIET

__all__ = ["report"]


def report(results: Mapping[str, Any], heading: str = "##") -> str:
    """Markdown. A step without figures is named with the reason."""
    sections = [_head(results)]
    for name, (title, write) in _SECTIONS.items():
        step = results["steps"].get(name)
        if step is None:
            text = "Not measured yet."
        elif "figures" not in step:
            text = f"Not measured: {step['error']}"
        else:
            text = write(step["figures"])
        sections.append(f"{heading} {title}\n\n{text}")
    return "\n\n".join(sections) + "\n"


def _head(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    busy = {"at the start": machine["busy"]} | {
        f"before {name}": step["busy_before"]
        for name, step in results["steps"].items()
        if step.get("busy_before") is not None
    }
    lines = [
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']:g} GiB, {machine['system']},"
        f" Python {machine['python']}, {packages}.",
        f"Begun {machine['began']}, code {machine['code']}; load average {machine['load_average']}, cores"
        f" {machine['busy']:.0%} busy before the first step.",
    ]
    if loud := [f"{share:.0%} {when}" for when, share in busy.items() if share > QUIET]:
        lines.append(
            f"\n**Warning: the machine was not quiet** (cores busy: {', '.join(loud)}). These figures say little;"
            " compare only those of one row."
        )
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _hop(figures: Any) -> str:
    rows = []
    for way, kinds in figures["milliseconds"].items():
        added = figures["added_ms"].get(way, {})
        cells = [
            cell
            for kind in ("new", "cached")
            for cell in (f"{kinds[kind]['p50']:.1f}", f"{added[kind]:.1f}" if added else "")
        ]
        rows.append([way, *cells])
    many = figures["per_second_16_clients"]
    return (
        _table(["one client, p50", "new picture, ms", "added", "cached, ms", "added"], rows)
        + f"\n\nThrough the gateway with 16 clients: {many['new']:.0f} new pictures a second,"
        f" {many['cached']:.0f} cached ones."
    )


def _stages(figures: Any) -> str:
    from benchmarks.stages import PARTS

    tables = []
    for model, bars in figures.items():
        rows = [
            [label, *(f"{value:.1f}" for value in (*_by_owner(parts, PARTS), sum(parts.values())))]
            for label, parts in bars.items()
        ]
        head = ["milliseconds", "gateway", "between services", "encoder", "decoder", "whole request"]
        tables.append(f"{model[0].upper()}{model[1:]}:\n\n{_table(head, rows)}")
    return "\n\n".join([*tables, "![Where the time of a request goes](stages.png)"])


def _by_owner(parts: Mapping[str, float], owners: Mapping[str, str]) -> list[float]:
    return [
        sum(value for name, value in parts.items() if owners[name] == owner)
        for owner in ("gateway", "way", "encoder", "decoder")
    ]


def _goodput(figures: Any) -> str:
    rows = [
        [
            f"{row['clients']} clients, {row['visual_tokens']} tokens",
            f"{row['answers_per_second']:.2f}",
            f"{row['goodput']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            "-" if row["ttft_p50_ms"] is None else f"{row['ttft_p50_ms']:.0f}",
            str(row["errors"]),
        ]
        for row in figures["rows"]
    ]
    gains = ", ".join(f"{gain:.1f} times with {clients} clients" for clients, gain in figures["times_as_many"].items())
    head = ["", "answers/s", "goodput/s", "tokens/s", "TTFT p50, ms", "errors"]
    return f"{_table(head, rows)}\n\nAs many answers with few tokens as with all: {gains or 'no answers to compare'}."


def _costs(figures: Any) -> str:
    parts = list(figures[0]["cpu_ms"])
    rounds = Counter[int]()  # by budget; the first one warms caches up
    rows = []
    for row in figures:
        rounds[row["budget"]] += 1
        cpu = [f"{row['cpu_ms'][part]:.1f}" for part in parts]
        rows.append([f"{row['budget']} tokens, round {rounds[row['budget']]}", *cpu, f"{row['per_second']:.0f}"])
    return _table(["CPU, ms a request", *parts, "requests/s"], rows)


def _selection(figures: Any) -> str:
    rows = [
        [
            f"{row['n']}, {row['k']}, {row['dk']}",
            str(row["batch"]),
            f"{row['fsr_ms']:.1f}",
            f"{row['cdpruner_ms']:.1f}",
            f"{row['divprune_ms']:.1f}",
            f"{row['peer_ratio']:.1f}",
        ]
        for row in figures
    ]
    return _table(["N, K, width of keys", "batch", "FSR, ms", "CDPruner", "DivPrune", "faster peer / FSR"], rows)


def _follow_ups(figures: Any) -> str:
    rows = [
        [
            name,
            f"{row['found']:.0%}",
            f"{row['first_ms']:.1f}",
            f"{row['second_ms']:.1f}",
            f"{row['cpu_ms_of_a_new_picture']:.1f}",
        ]
        for name, row in figures.items()
        if isinstance(row, dict)
    ]
    head = ["three replicas, one proxy", "found", "first question, ms", "second, ms", "CPU of a new picture, ms"]
    return _table(head, rows)


def _pictures(figures: str) -> str:
    return figures.strip()


_SECTIONS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "hop": ("What the service adds to a picture", _hop),
    "stages": ("Where the time of a request goes", _stages),
    "goodput": ("What compression saves", _goodput),
    "costs": ("CPU time of each process", _costs),
    "pictures": ("CPU time from a file to the tower's input", _pictures),
    "selection": ("Selection of tokens", _selection),
    "follow_ups": ("Follow-up questions at any replica", _follow_ups),
}
