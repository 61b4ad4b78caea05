"""Prometheus' configuration and rules with their tests, and the dashboards' files, without a running system."""

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

RULES = rules()


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
    for expr in [rule["expr"] for rule in RULES] + [query.expr for query in grafana.queries()]:
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
            "budget", "budget_chosen_by", "method_chosen_by", "interface",
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
    assert set(re.findall(r"\$(model|method|replica)\b", str(board["panels"]))) <= declared
    assert all(panel.get("description") for panel in board["panels"] if panel["type"] != "row")


def test_configuration_when_a_job_lacks_targets_is_refused():
    with pytest.raises(ValueError, match="encoder"):
        configuration({"gateway": ["127.0.0.1:1"]}, "1s")
