"""Prometheus' configuration and rules with their tests, and the dashboards' files, without a running system."""

import inspect
import re
import shutil
import subprocess

import pytest
import yaml

from deploy.catalogue import catalogue, series
from deploy.grafana import build
from deploy.grafana import queries as grafana
from deploy.grafana.render import format_value
from deploy.prometheus.local import HERE, configuration, rules
from fsr.cli.load import load
from fsr.gateway.telemetry.metrics import Metrics

RULES = rules()
ANNOTATIONS = grafana.dashboards()["latency"]["annotations"]["list"]


def promtool(*arguments):
    assert shutil.which("promtool"), "promtool is not installed; run `make tools`"
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration_is_valid():
    promtool("check", "config", "prometheus.yml")


def test_rules_pass_their_own_tests():
    promtool("test", "rules", *sorted((HERE / "tests").glob("*.yml")))


def test_every_alert_has_a_test_in_which_it_fires():
    cases = yaml.safe_load((HERE / "tests/alerts.yml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}


def test_every_recording_rule_has_a_test_of_its_value():
    cases = yaml.safe_load((HERE / "tests/recording.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["promql_expr_test"] if check["exp_samples"]]
    tested = {name for check in checks for name in grafana.metrics(check["expr"])}
    assert tested == {rule["record"] for rule in RULES if "record" in rule}


def test_every_metric_in_rules_and_panels_exists():
    """Also the names of recorded series."""
    known = series() | {rule["record"] for rule in RULES if "record" in rule} | {"up"}
    exprs = [rule["expr"] for rule in RULES] + [query.expr for query in grafana.queries()]
    for expr in exprs + [one["expr"] for one in ANNOTATIONS if one["name"] != "Alerts"]:
        names = grafana.metrics(expr)
        assert names and {name for name in names if not name.startswith("ray_serve_")} <= known, expr


def test_queries_filter_by_every_variable_that_their_metric_has():
    """`replica` lists encoders and decoders. A batch of the encoder mixes methods, so no `method` filters it."""
    labels = {metric.name: set(metric.labels) for metric in catalogue()}
    labels["ray_fsr_encoder_images_total"].remove("method")
    labels |= {name: names | {"replica"} for name, names in labels.items() if name.startswith("fsr_decoder_")}
    labels |= {rule["record"]: set(rule["record"].partition(":")[0].split("_")) for rule in RULES if "record" in rule}
    for query in grafana.queries():
        for selector in grafana.selectors(query.expr):
            name = re.sub("_(bucket|sum|count)$", "", selector.partition("{")[0])
            for label in labels.get(name, set()) & {"model", "method", "replica"}:
                assert f'{label}=~"${label}"' in selector, f"{query.dashboard}: {query.panel}: {selector}"


def windows(expr):
    """Over which a query computes rates, increases and percentiles; a recorded series over those of its rule."""
    recorded = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
    expr = re.sub(r"last_over_time\([^)]*\)", "", expr)  # the last value of a gauge, not a mean
    of_rules = [windows(recorded[name]) for name in grafana.metrics(expr) if name in recorded]
    return set(re.findall(r"\[([^]]+)\]", expr)).union(*of_rules)


def test_panels_of_a_row_have_one_window():
    """A percentile of one minute beside one of five may say that a part takes longer than the whole."""
    for name, board in grafana.dashboards().items():
        row, found = "", {}
        for panel in board["panels"]:
            row = panel["title"] if panel["type"] == "row" else row
            exprs = [target["expr"] for target in panel.get("targets", [])]
            found.setdefault(row, set()).update(*map(windows, exprs))
        assert all(len(used) <= 1 for used in found.values()), (name, found)
        others = [row for row, used in found.items() if used - {"$__rate_interval"}]
        assert all(re.search(r"\bover (the|one) ", row.lower()) for row in others), "such a row says it in its title"


def test_goodput_is_one_thing():
    """Complete answers within the bound, and the same bound: in the rule, the dashboard and `fsr load`."""
    bound = inspect.signature(load).parameters["bound"].default
    (rule,) = (rule["expr"] for rule in RULES if rule.get("record") == "model:fsr_goodput:rate5m")
    (query,) = (grafana.fill(query.expr, "5m") for query in grafana.queries() if "$bound" in query.expr)
    for expr in (rule, query):
        (selector,) = grafana.selectors(expr)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', selector))
        assert labels["stage"] == "total" and float(labels["le"]) == bound, expr
    (choice,) = (one for one in grafana.dashboards()["latency"]["templating"]["list"] if one["name"] == "bound")
    histogram = Metrics().seconds.labels("m", "total")
    assert set(choice["query"].split(",")) <= {sample.labels.get("le") for sample in histogram.collect()[0].samples}


def test_savings_now_fall_when_saving_stops(tmp_path):
    """Five minutes of answers with compression, five without, five of nothing; a value every 30 s."""
    names = {"kv_bytes": "KV memory", "prefill_flops": "prefill compute", "wire_bytes": "bytes sent"}
    values = {"_saved": "0+300x10 3000x20", "": "0+100x20 2000x10"}
    series = [
        {"series": f'fsr_{name}{suffix}_total{{model="m", method="fsr"}}', "values": values[suffix]}
        for name in names
        for suffix in values
    ]
    shown = [query for query in grafana.queries() if query.panel == "Savings now"]
    assert {query.legend for query in shown} == set(names.values())
    checks = [
        {"expr": grafana.fill(query.expr), "eval_time": time, "exp_samples": [{"labels": "{}", "value": value}]}
        for query in shown
        for time, value in (("5m", 0.75), ("7m", 0), ("10m", 0), ("14m", 0))
    ]
    test = {"interval": "30s", "input_series": series, "promql_expr_test": checks}
    (tmp_path / "now.yml").write_text(yaml.safe_dump({"evaluation_interval": "30s", "tests": [test]}))
    promtool("test", "rules", tmp_path / "now.yml")


# Ids in Grafana's valueFormats/categories.ts, and the forms of ids that Grafana turns into units.
UNITS = {"short", "percentunit", "s", "bytes", "Bps", "flops", "reqps"}
UNIT_FORM = re.compile(r"(si|prefix|suffix|count|currency|time):.+")


def test_every_unit_is_known_to_grafana():
    """If Grafana does not know a unit, it writes the bare number and the id."""
    for board in grafana.dashboards().values():
        for panel in board["panels"]:
            unit = panel.get("fieldConfig", {"defaults": {"unit": "short"}})["defaults"]["unit"]
            assert unit in UNITS or UNIT_FORM.fullmatch(unit), f"{panel['title']}: {unit}"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.5e15, "si:FLOP", "2.5 PFLOP"),
        (3e12, "flops", "3 TFLOP/s"),
        (2e6, "bytes", "2 MB"),
        (0.25, "percentunit", "25%"),
    ],
)
def test_format_value_writes_the_unit(value, unit, text):
    assert format_value(value, unit) == text


def test_every_decoder_metric_has_the_label_model():
    assert all("model" in metric.labels for metric in catalogue() if metric.service == "decoder")


def test_metric_names_follow_the_conventions():
    for metric in catalogue():
        assert re.fullmatch(r"(ray_)?fsr_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not re.search(r"_(ms|milliseconds|mb|gb|percent)(_|$)", metric.name), "base units only"
        assert set(metric.labels) <= {
            "model", "method", "stage", "code", "rpc", "role", "reason", "kind", "replica", "application", "deployment",
            "budget", "budget_chosen_by", "method_chosen_by", "interface", "outcome",
        }  # fmt: skip


def test_dashboards_match_their_source():
    for path, text in build.build().items():
        assert path.read_text() == text, "run python deploy/grafana/build.py"
    assert {path.stem for path in build.build()} == set(grafana.dashboards()) == {"savings", "latency", "capacity"}


@pytest.mark.parametrize("name", grafana.dashboards())
def test_dashboards_have_valid_panels_and_variables(name):
    board = grafana.dashboards()[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    positions = [p["gridPos"] for p in board["panels"]]
    cells = [(x, y) for p in positions for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert max(x for x, _ in cells) < 24
    declared = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$(model|method|replica|bound)\b", str(board["panels"]))) == declared - {"datasource"}
    assert board["graphTooltip"] == 1 and board["annotations"]["list"] == ANNOTATIONS
    assert all(panel.get("description") for panel in board["panels"] if panel["type"] != "row")


def test_replicas_of_a_local_system_have_the_names_of_fsr_up():
    targets = {"gateway": ["h:1"], "decoder": ["h:2", "h:3"], "encoder": ["h:4"]}
    jobs = yaml.safe_load(configuration(targets, "1s"))["scrape_configs"]
    names = {one["targets"][0]: one.get("labels") for job in jobs for one in job["static_configs"]}
    assert names == {
        "h:1": {"replica": "gateway"},
        "h:2": {"replica": "decoder-0"},
        "h:3": {"replica": "decoder-1"},
        "h:4": None,  # Serve gives it its own
    }


def test_configuration_when_a_job_lacks_targets_is_refused():
    with pytest.raises(ValueError, match="encoder"):
        configuration({"gateway": ["127.0.0.1:1"]}, "1s")
