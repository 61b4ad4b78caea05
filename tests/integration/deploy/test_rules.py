"""Prometheus' configuration, rules and their tests, and the dashboards' files, without a running system."""

import re
import shutil
import subprocess

import pytest
import yaml

from deploy.catalogue import catalogue, series
from deploy.grafana import build
from deploy.grafana import queries as asked
from deploy.grafana.render import _written
from deploy.prometheus.local import HERE, configuration

RULES = [
    rule
    for path in sorted((HERE / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]


def promtool(*arguments):
    assert shutil.which("promtool"), "promtool is not installed; run `make tools`"
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration():
    promtool("check", "config", "prometheus.yml")


def test_rules_do_what_they_say():
    promtool("test", "rules", *sorted((HERE / "tests").glob("*.yml")))


def test_every_alert_is_tested_to_fire():
    cases = yaml.safe_load((HERE / "tests/alerts.yml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}


def test_every_recording_rule_is_tested_for_its_value():
    cases = yaml.safe_load((HERE / "tests/recording.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["promql_expr_test"] if check["exp_samples"]]
    read = {name for check in checks for name in asked.metrics(check["expr"])}
    assert read == {rule["record"] for rule in RULES if "record" in rule}


def test_every_name_exists():
    """Also those that one rule or panel reads of another rule."""
    known = series() | {rule["record"] for rule in RULES if "record" in rule} | {"up"}
    for expr in [rule["expr"] for rule in RULES] + [query.expr for query in asked.queries()]:
        names = asked.metrics(expr)
        assert names and {name for name in names if not name.startswith("ray_serve_")} <= known, expr


def test_every_query_is_filtered_by_the_variables_that_it_has_labels_for():
    """The variable `replica` lists encoders and decoders; a batch of the encoder mixes methods."""
    labels = {metric.name: set(metric.labels) for metric in catalogue()}
    labels["ray_fsr_encoder_images_total"].remove("method")
    labels |= {name: found | {"replica"} for name, found in labels.items() if name.startswith("fsr_decoder_")}
    labels |= {rule["record"]: set(rule["record"].partition(":")[0].split("_")) for rule in RULES if "record" in rule}
    for query in asked.queries():
        for selector in asked.selectors(query.expr):
            name = re.sub("_(bucket|sum|count)$", "", selector.partition("{")[0])
            for label in labels.get(name, set()) & {"model", "method", "replica"}:
                assert f'{label}=~"${label}"' in selector, f"{query.dashboard}: {query.panel}: {selector}"


# Ids of Grafana's valueFormats/categories.ts that we use, and the forms that it makes units of by itself.
UNITS = {"short", "percentunit", "s", "bytes", "Bps", "flops", "reqps"}
MADE = re.compile(r"(si|prefix|suffix|count|currency|time):.+")


def test_every_unit_is_one_that_grafana_has():
    """Of one that it does not know it writes the bare number and the id."""
    for board in asked.dashboards().values():
        for panel in board["panels"]:
            unit = panel.get("fieldConfig", {"defaults": {"unit": "short"}})["defaults"]["unit"]
            assert unit in UNITS or MADE.fullmatch(unit), f"{panel['title']}: {unit}"


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (2.5e15, "si:FLOP", "2.5 PFLOP"),
        (3e12, "flops", "3 TFLOP/s"),
        (2e6, "bytes", "2 MB"),
        (0.25, "percentunit", "25%"),
    ],
)
def test_values_are_written_with_their_units(value, unit, written):
    assert _written(value, unit) == written


def test_every_metric_of_the_decoder_says_whose_it_is():
    assert all("model" in metric.labels for metric in catalogue() if metric.service == "decoder")


def test_names_follow_the_conventions():
    for metric in catalogue():
        assert re.fullmatch(r"(ray_)?fsr_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not re.search(r"_(ms|milliseconds|mb|gb|percent)(_|$)", metric.name), "base units only"
        assert set(metric.labels) <= {
            "model", "method", "stage", "code", "rpc", "role", "reason", "kind", "replica", "application", "deployment",
            "budget",
        }  # fmt: skip


def test_dashboards_are_what_the_spec_gives():
    for path, text in build.build().items():
        assert path.read_text() == text, "run python deploy/grafana/build.py"
    assert {path.stem for path in build.build()} == set(asked.dashboards()) == {"savings", "latency", "capacity"}


@pytest.mark.parametrize("name", asked.dashboards())
def test_dashboards_are_whole(name):
    board = asked.dashboards()[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places = [p["gridPos"] for p in board["panels"]]
    taken = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(set(taken)) == len(taken), "panels overlap"
    assert max(x for x, _ in taken) < 24
    declared = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$(model|method|replica)\b", str(board["panels"]))) <= declared
    assert all(panel.get("description") for panel in board["panels"] if panel["type"] != "row")


def test_targets_must_fit_the_jobs():
    with pytest.raises(ValueError, match="encoder"):
        configuration({"gateway": ["127.0.0.1:1"]}, "1s")
