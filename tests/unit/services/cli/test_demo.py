import json
from contextlib import nullcontext
from types import SimpleNamespace

from typer.testing import CliRunner

from fsr.cli.main import app
from fsr.client import Client, Usage
from fsr.v1 import gateway_pb2


def test_demo_prints_answers_and_savings_as_json(monkeypatch):
    usage = Usage.of(gateway_pb2.Usage(visual_tokens_in=144, visual_tokens_kept=16))

    def ask(self, picture, question, budget):
        return SimpleNamespace(text=f" {budget}\n", usage=usage)

    monkeypatch.setattr("fsr.cli.demo.running", lambda *_, **__: nullcontext({"gateway": "127.0.0.1:1"}))
    monkeypatch.setattr(Client, "ask", ask)
    done = CliRunner().invoke(app, ["demo", "--budget", "16", "--json"])
    report = json.loads(done.stdout)
    assert {(row["all_tokens"], row["budget"]) for row in report["answers"]} == {("1.0", "16")}
    assert all(row["question"] and row["true_answer"] for row in report["answers"])
    assert report["budget"] == "16" and report["usage"]["visual_tokens_kept"] == 16
