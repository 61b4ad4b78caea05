"""A real Prometheus scrapes a running system: every panel and rule must have data, and the figures be the load's."""

import asyncio
import math
import os
import time
from dataclasses import dataclass

import pytest
import yaml

from deploy.grafana import queries as asked
from deploy.grafana.render import render
from deploy.prometheus.local import HERE, Prometheus, prometheus
from helpers.loads import (
    LOAD,
    LONG,
    MODEL,
    OTHER,
    Mixed,
    ask,
    compare,
    figures,
    kill_a_busy_decoder,
    seen,
    settled,
    steady,
    total,
)
from helpers.waiting import until

RULES = [
    rule
    for path in sorted((HERE / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
# Where pictures for the documentation are wanted, they show minutes rather than seconds.
PAUSE = 40.0 if "FSR_PICTURES" in os.environ else 1.0
pytestmark = pytest.mark.timeout(900)


@dataclass
class Watched:
    """A Prometheus, what it has seen, and what it must have seen.

    Attributes:
        wanted, counted, usages: of the load whose figures are checked.
        compared: what the canary must have counted, and what it did.
        moved: usage of every answer of the canary's gateway since it could lose a decoder.
        gateway, other: where the metrics of that gateway and of the decoder of another model are.
        began: when, in seconds since 1970.
    """

    server: Prometheus
    gateway: str
    other: str
    began: float
    wanted: dict
    counted: dict
    usages: list
    compared: tuple
    moved: list


@pytest.fixture(scope="module")
def watched(system, spawn, same_model, free_ports, png):
    """The running system and, beside it, a gateway with a canary, which has decoders of its own: one to be killed, and
    one of another model, which knows no pictures."""
    victim = spawn("decoder", *same_model, "--served-name", MODEL, "--kv-memory", "8MiB")
    other = spawn("decoder", *same_model, "--kv-memory", "8MiB", "--served-name", OTHER)
    options = ["--encoders", system["encoder"], "--canary-share", "1", "--discovery-seconds", "0.5"]
    options += ["--decoders", ",".join((system["decoder-0"], victim.address, other.address)), "--eject-failures", "1"]
    canary = spawn("gateway", *options)
    for service in (victim, other, canary):
        service.wait_until_serving()
    targets = {
        "gateway": [system["metrics"], canary.metrics],
        "decoder": [system["decoder-0-metrics"], system["decoder-1-metrics"], victim.metrics, other.metrics],
        "encoder": [system["encoder-metrics"]],
    }
    with prometheus(targets, free_ports(1), "1s") as server:
        yield watch(server, system["gateway"], canary, victim, other, png)


def watch(server, plain, canary, victim, other, png):
    until(lambda: total(server, "up") == 7)
    steady(server, figures(LOAD))  # the encoder may have had other callers before; what they left is seen by now
    began = time.time()
    start = {query: total(server, query) for query in figures(LOAD)}
    # Every label is there before the counting starts: a series that is born is no increase.
    first = [(method, budget, 1) for method, budget, _ in LOAD]
    asyncio.run(ask(plain, png, [(method, budget) for method, budget, _ in first]))
    assert settled(server, figures(first), start) == figures(first)
    before = {query: count + figures(first)[query] for query, count in start.items()}
    usages = []
    for method, budget, count in LOAD:
        done, refused = asyncio.run(ask(plain, png, [(method, budget)] * count))
        assert not refused
        usages += [answer.usage for answer in done]
    counted = settled(server, figures(LOAD), before)
    compared = asyncio.run(compare(plain, canary, png))
    moved = events(plain, canary, victim, png)
    seen(server)
    return Watched(server, canary.metrics, other.metrics, began, figures(LOAD), counted, usages, compared, moved)


def events(plain, canary, victim, png):
    """Callers go on while some come all at once, and a busy decoder is killed; usage at the canary's gateway."""
    with Mixed((plain, canary.address), png) as load:
        time.sleep(PAUSE)
        done, refused = asyncio.run(ask(canary.address, png, [("fsr", 16)] * 24, **LONG))
        assert not refused and canary.metric("fsr_canary_skipped_total", reason="busy") > 0
        time.sleep(PAUSE)
        assert asyncio.run(ask(plain, png, [("fsr", 16)] * 60, **LONG))[1], "the overload was none"
        time.sleep(PAUSE)
        usages = asyncio.run(kill_a_busy_decoder(canary, victim, png))
        time.sleep(PAUSE)
    assert not load.errors
    return [*usages, *load.usages, *(answer.usage for answer in done)]


def test_figures_are_those_of_the_load(watched):
    assert watched.counted == watched.wanted
    assert sum(usage.visual_tokens_kept for usage in watched.usages) == 12 * 16 + 6 * 32 + 4 * 4


def test_canary_counts_what_asking_twice_tells(watched):
    wanted, counted = watched.compared
    assert counted == wanted
    assert wanted["exact"] < wanted["answers"], "questions that every budget answers alike tell nothing"


def test_a_killed_decoder_shows_in_failovers_retries_and_ejections(watched):
    def now(name, **labels):
        chosen = ", ".join(f'{key}="{value}"' for key, value in labels.items())
        return total(watched.server, f'{name}{{replica="{watched.gateway}", {chosen}}}')

    moved = sum(usage.failovers for usage in watched.moved)
    assert moved > 0 and now("fsr_failovers_total", model=MODEL) == moved
    assert now("fsr_failovers_total", model=OTHER) == 0
    assert now("fsr_retries_total", role="decoder") == sum(usage.retries for usage in watched.moved) >= moved
    assert now("fsr_retries_total", role="encoder") == now("fsr_ejections_total", role="encoder") == 0
    assert now("fsr_ejections_total", role="decoder") == now("fsr_replicas_ejected", role="decoder") == 1
    assert now("fsr_replicas_ready", role="decoder", model=MODEL) == 1
    panel = [query for query in asked.queries() if query.panel == "Failovers, retries, ejections a second"]
    seen = [series for query in panel for series in watched.server.instant(asked.fill(query.expr, rate="5m"))]
    rising = {(s.labels.get("model"), s.labels.get("role")) for s in seen if s.points[-1][1] > 0}
    assert len(seen) == 6 and rising == {(MODEL, None), (None, "decoder")}


def finite(series):
    return all(math.isfinite(value) for one in series for _, value in one.points)


@pytest.mark.parametrize("query", list(asked.queries()), ids=lambda q: f"{q.dashboard}: {q.panel}: {q.legend}")
def test_every_panel_shows_something(watched, query):
    server = watched.server
    series = server.instant(asked.fill(query.expr, rate="5m", span="5m"))
    assert series and finite(series)
    for one in series:
        assert all(one.labels.get(label) for label in query.legend_labels), one.labels
        assert one.labels.get("model", MODEL) in (MODEL, OTHER)
        assert one.labels.get("method", "fsr") in ("fsr", "cdpruner")


@pytest.mark.parametrize("model", [MODEL, OTHER])
def test_a_chosen_model_is_all_that_is_shown(watched, model):
    tiers = {}
    for query in asked.queries():
        if "$model" not in query.expr:
            continue
        for one in watched.server.instant(asked.fill(query.expr.replace("$model", model), rate="5m", span="5m")):
            assert one.labels.get("model", model) == model, query
            if "fsr_decoder_" in query.expr and "replica" in one.labels:
                tiers.setdefault(query.panel, set()).add(one.labels["replica"])
    assert set(tiers) == {"Time per output token", "KV memory", "Requests running and waiting", "Batch size"}
    for replicas in tiers.values():
        assert replicas == {watched.other} if model == OTHER else replicas and watched.other not in replicas


def test_the_room_for_extra_requests_is_that_of_each_models_decoders(watched):
    told = {
        one.labels["model"]: one.points[-1][1] for one in watched.server.instant("model:fsr_extra_requests:estimate")
    }
    assert told[OTHER] == 0 and told[MODEL] > 0, "text alone saves nothing"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_rule_has_its_series(watched, rule):
    server = watched.server
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
    server = watched.server
    rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []


def test_variables_list_what_there_is(watched):
    server = watched.server
    found = {}
    for board in asked.dashboards().values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector, _, label = variable["definition"].removeprefix("label_values(")[:-1].rpartition(", ")
                series = server.instant(f"last_over_time({asked.fill(selector)}[5m])")
                found[variable["name"]] = {one.labels.get(label) for one in series}
    assert found["model"] == {MODEL, OTHER} and found["method"] == {"fsr", "cdpruner"}
    assert len(found["replica"]) == 5 and None not in found["replica"]


def test_pictures_of_the_dashboards(watched, tmp_path):
    """Also what the documentation shows, where FSR_PICTURES names a folder."""
    folder = os.environ.get("FSR_PICTURES", tmp_path)
    paths = render(watched.server, folder, seconds=time.time() - watched.began, step=1)
    assert [path.stem for path in paths] == [f"dashboard-{name}" for name in asked.dashboards()]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and 10_000 < path.stat().st_size < 300_000
