"""A real Prometheus scrapes a running system: every panel and rule has data, and the figures are those of the load."""

import asyncio
import math
import os
import time
from dataclasses import dataclass

import pytest

from deploy.grafana import queries as grafana
from deploy.grafana.render import render
from deploy.prometheus.local import Prometheus, prometheus, rules
from helpers.loads import (
    LOAD,
    LONG,
    MODEL,
    OTHER,
    MixedLoad,
    ask,
    compare,
    figures,
    kill_a_busy_decoder,
    settled,
    total,
    wait_until_scraped,
    wait_until_steady,
)
from helpers.waiting import until

RULES = rules()
# Labels `replica`, in the order of the targets below: the gateway with the canary, the decoder of the other model.
CANARY_GATEWAY, OTHER_DECODER = "gateway-1", "decoder-3"
# Pictures for the documentation show minutes, a test needs only seconds.
PAUSE = 40.0 if "FSR_PICTURES" in os.environ else 1.0
pytestmark = pytest.mark.timeout(1800)


@dataclass(kw_only=True)
class Watched:
    """A Prometheus, the figures that it should have, and those that it has.

    Attributes:
        server: the Prometheus.
        began: start of the load, in seconds since 1970.
        expected, counted, usages: figures of the load, those in Prometheus, and the usage of its answers.
        compared: what the canary should have counted, and what it did count.
        canary_usages: usage of every answer of the canary's gateway since one of its decoders could die.
    """

    server: Prometheus
    began: float
    expected: dict
    counted: dict
    usages: list
    compared: tuple
    canary_usages: list


@pytest.fixture(scope="module")
def watched(system, spawn, served_model, long_context, free_ports, png):
    """The running system and a second gateway with a canary. That gateway has two more decoders: one that is killed,
    and one that serves another model, without pictures."""
    victim = spawn("decoder", *served_model, "--kv-memory", "8MiB")
    other = spawn("decoder", "--model", str(long_context), "--kv-memory", "8MiB", "--served-name", OTHER)
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
        yield watch(server, system["gateway"], canary, victim, png)


def watch(server, plain, canary, victim, png):
    until(lambda: total(server, "up") == 7)
    wait_until_steady(server, figures(LOAD))  # other tests may have called the encoder: Prometheus has seen that now
    began = time.time()
    start = {query: total(server, query) for query in figures(LOAD)}
    # Every series exists before the counting starts: Prometheus sees no increase in the first value of a series.
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
    canary_usages = run_events(plain, canary, victim, png)
    wait_until_scraped(server)
    return Watched(
        server=server,
        began=began,
        expected=figures(LOAD),
        counted=counted,
        usages=usages,
        compared=compared,
        canary_usages=canary_usages,
    )


def run_events(plain, canary, victim, png):
    """A mixed load, two bursts, and the death of a busy decoder. Returns the usages at the canary's gateway."""
    with MixedLoad(addresses=(plain, canary.address), picture=png) as load:
        time.sleep(PAUSE)
        done, refused = asyncio.run(ask(canary.address, png, [("fsr", 16)] * 24, **LONG))
        assert not refused and canary.metric("fsr_canary_skipped_total", reason="busy") > 0
        time.sleep(PAUSE)
        assert asyncio.run(ask(plain, png, [("fsr", 16)] * 60, **LONG))[1], "the burst was no overload"
        time.sleep(PAUSE)
        usages = asyncio.run(kill_a_busy_decoder(canary, victim, png))
        time.sleep(PAUSE)
    assert not load.errors
    return [*usages, *load.usages, *(answer.usage for answer in done)]


def test_figures_equal_those_of_the_load(watched):
    assert watched.counted == watched.expected
    assert sum(usage.visual_tokens_kept for usage in watched.usages) == 12 * 16 + 6 * 32 + 4 * 4


def test_canary_counts_equal_those_of_asking_twice(watched):
    expected, counted = watched.compared
    assert counted == expected
    assert expected["exact"] < expected["answers"], "some answers must differ between the budgets"


def test_killed_decoder_shows_in_failovers_retries_and_ejections(watched):
    def now(name, **labels):
        chosen = ", ".join(f'{key}="{value}"' for key, value in labels.items())
        return total(watched.server, f'{name}{{replica="{CANARY_GATEWAY}", {chosen}}}')

    moved = sum(usage.failovers for usage in watched.canary_usages)
    assert moved > 0 and now("fsr_failovers_total", model=MODEL) == moved
    assert now("fsr_failovers_total", model=OTHER) == 0
    assert now("fsr_retries_total", role="decoder") == sum(usage.retries for usage in watched.canary_usages) >= moved
    assert now("fsr_retries_total", role="encoder") == now("fsr_ejections_total", role="encoder") == 0
    assert now("fsr_ejections_total", role="decoder") == now("fsr_replicas_ejected", role="decoder") == 1
    assert now("fsr_replicas_ready", role="decoder", model=MODEL) == 1
    queries = [query for query in grafana.queries() if query.panel.startswith("Failovers, retries")]
    shown = [series for query in queries for series in watched.server.instant(grafana.fill(query.expr, rate="5m"))]
    rising = {(s.labels.get("model"), s.labels.get("role")) for s in shown if s.points[-1][1] > 0}
    assert len(shown) == 6 and rising == {(MODEL, None), (None, "decoder")}


def finite(series):
    return all(math.isfinite(value) for one in series for _, value in one.points)


@pytest.mark.parametrize("query", list(grafana.queries()), ids=lambda q: f"{q.dashboard}: {q.panel}: {q.legend}")
def test_every_query_has_data(watched, query):
    server = watched.server
    series = server.instant(grafana.fill(query.expr, rate="5m", span="5m"))
    assert series and finite(series)
    for one in series:
        assert all(one.labels.get(label) for label in query.legend_labels), one.labels
        assert one.labels.get("model", MODEL) in (MODEL, OTHER)
        assert one.labels.get("method", "fsr") in ("fsr", "cdpruner")


@pytest.mark.parametrize("model", [MODEL, OTHER])
def test_dashboards_with_one_model_chosen_show_no_other(watched, model):
    tiers = {}
    for query in grafana.queries():
        if "$model" not in query.expr:
            continue
        for one in watched.server.instant(grafana.fill(query.expr.replace("$model", model), rate="5m", span="5m")):
            assert one.labels.get("model", model) == model, query
            if "fsr_decoder_" in query.expr and "replica" in one.labels:
                tiers.setdefault(query.panel, set()).add(one.labels["replica"])
    panels = {"Time from token to token", "KV memory", "Requests running and waiting", "Answers in a decode step"}
    assert set(tiers) == panels
    for replicas in tiers.values():
        assert replicas == {OTHER_DECODER} if model == OTHER else replicas and OTHER_DECODER not in replicas


def test_extra_requests_are_estimated_per_model(watched):
    extra = {
        one.labels["model"]: one.points[-1][1] for one in watched.server.instant("model:fsr_extra_requests:estimate")
    }
    assert extra[OTHER] == 0 and extra[MODEL] > 0, "a model with text-only requests saves nothing"


def test_annotations_show_when_each_process_started(watched):
    shown = {one["name"]: one for one in grafana.dashboards()["capacity"]["annotations"]["list"]}
    starts = {one.labels["replica"]: one.points[-1][1] for one in watched.server.instant(shown["Restarts"]["expr"])}
    gateways, decoders = {"gateway-0", "gateway-1"}, {"decoder-0", "decoder-1", "decoder-3"}
    assert starts.keys() >= gateways | decoders  # decoder-2 was killed
    assert all(watched.began - 3600 < start / 1000 < watched.began for start in starts.values())
    replicas = watched.server.instant(f"last_over_time(({shown['New encoder replicas']['expr']})[1h:10s])")
    assert len(replicas) == 1 and replicas[0].labels["replica"]
    assert isinstance(watched.server.instant(shown["Alerts"]["expr"]), list)


def test_exemplars_of_latencies_lead_to_traces(watched, traces):
    found = watched.server.get(
        "query_exemplars", query="fsr_stage_seconds_bucket", start=watched.began, end=time.time()
    )
    trace_ids = {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}
    assert {series["seriesLabels"]["stage"] for series in found} >= {"ttft", "total"}
    assert trace_ids and trace_ids <= {span.trace_id for span in traces.spans()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_rule_has_data(watched, rule):
    server = watched.server
    if "record" in rule:
        series = server.instant(rule["record"])
        assert series and finite(series)
        level = rule["record"].partition(":")[0].split("_")
        assert all(set(level) <= set(one.labels) for one in series)
    for selector in grafana.selectors(rule["expr"]):
        selector = selector.replace('code=~"INTERNAL|UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|DATA_LOSS"', "")
        assert server.instant(f"last_over_time({selector}[5m])"), selector
    assert isinstance(server.instant(rule["expr"]), list)


def test_every_rule_is_loaded_and_healthy(watched):
    server = watched.server
    loaded = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert len(loaded) == len(RULES)
    assert [rule["name"] for rule in loaded if rule["health"] != "ok"] == []


def test_variables_list_all_values(watched):
    server = watched.server
    values = {}
    for board in grafana.dashboards().values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                selector, _, label = variable["definition"].removeprefix("label_values(")[:-1].rpartition(", ")
                series = server.instant(f"last_over_time({grafana.fill(selector)}[5m])")
                values[variable["name"]] = {one.labels.get(label) for one in series}
    assert values["model"] == {MODEL, OTHER} and values["method"] == {"fsr", "cdpruner"}
    assert len(values["replica"]) == 5 and None not in values["replica"]


def test_render_draws_every_dashboard(watched, tmp_path):
    """If FSR_PICTURES names a folder, the pictures for the documentation are written into it."""
    folder = os.environ.get("FSR_PICTURES", tmp_path)
    paths = render(watched.server, folder, seconds=time.time() - watched.began, step=1)
    assert [path.stem for path in paths] == [f"dashboard-{name}" for name in grafana.dashboards()]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG") and 10_000 < path.stat().st_size < 300_000
