"""A real Prometheus scrapes a running system: every panel and rule must have data, and the figures be the load's."""

import asyncio
import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
import yaml

from deploy.grafana import queries as asked
from deploy.grafana.render import render
from deploy.prometheus.local import HERE, prometheus
from services.client import AsyncClient, Client, ClientError

QUESTION, COLOUR = "Is there a red star?", "What colour is the star?"
RULES = [
    rule
    for path in sorted((HERE / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
# The load whose figures are checked: method, budget and number of requests.
LOAD = (("fsr", 16, 12), ("random", 32, 6), ("fsr", 4, 4))


async def ask(address, picture, wanted):
    """Asks all at once; the answers' usage, and how many were refused."""
    async with AsyncClient(address) as client:
        calls = (
            client.ask(picture(i % 4), QUESTION, budget=budget, method=method, **more)
            for i, (method, budget, more) in enumerate(wanted)
        )
        told = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, ClientError) or hasattr(one, "usage") for one in told), told
    return [one.usage for one in told if hasattr(one, "usage")], sum(isinstance(one, ClientError) for one in told)


def figures(load):
    """What a load must have added to some sums."""
    kept = {method: sum(b * n for m, b, n in load if m == method) for method in ("fsr", "random")}
    images = {method: sum(n for m, _, n in load if m == method) for method in ("fsr", "random")}
    return {
        'fsr_requests_total{rpc="Generate", code="OK"}': sum(images.values()),
        'fsr_visual_tokens_in_total{method="fsr"}': 144 * images["fsr"],
        'fsr_visual_tokens_kept_total{method="fsr"}': kept["fsr"],
        'fsr_visual_tokens_kept_total{method="random"}': kept["random"],
        'ray_fsr_encoder_visual_tokens_kept_total{method="fsr"}': kept["fsr"],
        'ray_fsr_encoder_visual_tokens_in_total{method="random"}': 144 * images["random"],
        "ray_fsr_encoder_images_total": sum(images.values()),
    }


def settled(server, ask_for, before, seconds=30):
    """Waits until Prometheus has seen every sum of `ask_for` reach what it must."""
    end = time.monotonic() + seconds
    while True:
        now = {query: sum(s.points[-1][1] for s in server.instant(query)) - before[query] for query in ask_for}
        if now == ask_for or time.monotonic() > end:
            return now
        time.sleep(0.5)


@contextlib.contextmanager
def canary_gateway(at, port):
    """A second gateway, which asks every answer once more without compression when there is little to do."""
    command = [sys.executable, "-m", "services.gateway", "--port", str(port), "--metrics-port", str(port + 1)]
    command += ["--encoders", at["encoder"], "--decoders", at["decoder-0"], "--canary-share", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with Client(f"127.0.0.1:{port}") as client:
            end = time.monotonic() + 60
            while True:
                with contextlib.suppress(ClientError):
                    if client.models(timeout=2):
                        break
                assert time.monotonic() < end
                time.sleep(0.3)
        yield f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
    finally:
        process.terminate()
        process.wait(40)


def value(address, name):
    """Sum of the series on the page at `address` whose name and labels begin with `name`."""
    page = urllib.request.urlopen(f"http://{address}/metrics").read().decode()
    return sum(float(number) for number in re.findall(rf"^{re.escape(name)}\S* (\S+)$", page, re.MULTILINE))


def compare(at, gateway, metrics, png):
    """Asks some questions through the canary's gateway, one after the other; what it must and what it did count."""
    wanted = {"answers": 0, "exact": 0, "tokens": 0, "tokens_agreed": 0}
    with Client(at["gateway"]) as plain, Client(gateway) as canary:
        for seed in range(10, 18):
            few, whole = (plain.ask(png(seed), COLOUR, budget=n).token_ids for n in (4, 144))
            wanted["answers"] += 1
            wanted["exact"] += few == whole
            wanted["tokens"] += max(len(few), len(whole))
            wanted["tokens_agreed"] += sum(a == b for a, b in zip(few, whole, strict=False))
            assert canary.ask(png(seed), COLOUR, budget=4).token_ids == few
            end = time.monotonic() + 20
            while value(metrics, "fsr_canary_answers_total") < wanted["answers"] and time.monotonic() < end:
                time.sleep(0.05)
        canary.ask(png(1), COLOUR, budget=144)  # nothing to compare
        canary.ask(png(1), COLOUR, budget=4, temperature=1.0)  # nor here
    counted = {name: value(metrics, f"fsr_canary_{name}_total") for name in wanted}
    return wanted, counted


@pytest.fixture(scope="module")
def watched(system, free_ports, png):
    """A Prometheus over a system that has answered, refused, and lost a decoder; and what the first load was."""
    at, base = system, free_ports(3)
    with canary_gateway(at, base) as (canary, canary_metrics):
        yield from watch(at, png, canary, canary_metrics, base + 2)


def watch(at, png, canary, canary_metrics, port):
    targets = {
        "gateway": [at["metrics"], canary_metrics],
        "decoder": [at["decoder-0-metrics"], at["decoder-1-metrics"]],
        "encoder": [at["encoder-metrics"]],
    }
    with prometheus(targets, port, "1s") as server:
        end = time.monotonic() + 60
        while sum(s.points[-1][1] for s in server.instant("up")) < 5 and time.monotonic() < end:
            time.sleep(0.2)
        time.sleep(2)  # the encoder may have had other callers before; what they left is seen by now
        start = {query: sum(s.points[-1][1] for s in server.instant(query)) for query in figures(LOAD)}
        # Every label is there before the counting starts: a series that is born is no increase.
        first = [(method, budget, 1) for method, budget, _ in LOAD]
        asyncio.run(ask(at["gateway"], png, [(method, budget, {}) for method, budget, _ in first]))
        assert settled(server, figures(first), start) == figures(first)
        before = {query: count + figures(first)[query] for query, count in start.items()}
        wanted = figures(LOAD)
        usages = []
        for method, budget, count in LOAD:
            done, refused = asyncio.run(ask(at["gateway"], png, [(method, budget, {})] * count))
            assert not refused
            usages += done
        counted = settled(server, wanted, before)
        compared = compare(at, canary, canary_metrics, png)
        told, refused = asyncio.run(ask(canary, png, [("fsr", 16, {})] * 24))
        assert len(told) == 24 and value(canary_metrics, 'fsr_canary_skipped_total{reason="busy"}') > 0
        _, refused = asyncio.run(ask(at["gateway"], png, [("fsr", 16, {})] * 60))
        assert refused, "the overload was none"
        victim = next(
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == "LISTEN" and f"127.0.0.1:{c.laddr.port}" == at["decoder-1"]
        )
        os.kill(victim, signal.SIGKILL)
        asyncio.run(ask(at["gateway"], png, [("fsr", 16, {})] * 8))
        time.sleep(4)
        yield server, wanted, counted, usages, compared


def test_figures_are_those_of_the_load(watched):
    _, wanted, counted, usages, _ = watched
    assert counted == wanted
    assert sum(usage.visual_tokens_kept for usage in usages) == 12 * 16 + 6 * 32 + 4 * 4


def test_canary_counts_what_asking_twice_tells(watched):
    wanted, counted = watched[4]
    assert counted == wanted
    assert wanted["exact"] < wanted["answers"], "questions that every budget answers alike tell nothing"


def finite(series):
    return all(math.isfinite(value) for one in series for _, value in one.points)


@pytest.mark.parametrize("query", list(asked.queries()), ids=lambda q: f"{q.dashboard}: {q.panel}: {q.legend}")
def test_every_panel_shows_something(watched, query):
    server = watched[0]
    series = server.instant(asked.fill(query.expr, rate="1m", span="5m"))
    assert series and finite(series)
    for one in series:
        assert all(one.labels.get(label) for label in query.legend_labels), one.labels
        assert one.labels.get("model", "fsr-tiny") == "fsr-tiny"
        assert one.labels.get("method", "fsr") in ("fsr", "random")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_rule_has_its_series(watched, rule):
    server = watched[0]
    if "record" in rule:
        series = server.instant(rule["record"])
        assert series and finite(series)
        level = rule["record"].partition(":")[0].split("_")
        assert all(set(level) <= set(one.labels) for one in series)
    for selector in asked.selectors(rule["expr"]):
        selector = selector.replace('code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS"', "")
        assert server.instant(f"last_over_time({selector}[5m])"), selector
    assert isinstance(server.instant(rule["expr"]), list)


def test_every_alert_is_loaded_and_healthy(watched):
    server = watched[0]
    rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []


def test_variables_list_what_there_is(watched):
    server = watched[0]
    found = {}
    for board in asked.dashboards().values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector, _, label = variable["definition"].removeprefix("label_values(")[:-1].rpartition(", ")
                found[variable["name"]] = {
                    one.labels.get(label) for one in server.instant(f"last_over_time({selector}[5m])")
                }
    assert found["model"] == {"fsr-tiny"} and found["method"] == {"fsr", "random"}
    assert len(found["replica"]) == 3 and None not in found["replica"]


def test_pictures_of_the_dashboards(watched, tmp_path):
    """Also what the documentation shows, where FSR_PICTURES names a folder."""
    folder = os.environ.get("FSR_PICTURES", tmp_path)
    paths = render(watched[0], folder, seconds=60, step=1)
    assert [path.stem for path in paths] == [f"dashboard-{name}" for name in asked.dashboards()]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and 10_000 < path.stat().st_size < 150_000
