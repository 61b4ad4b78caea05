"""What `fsr load` sends and counts."""

import asyncio
import json
from io import BytesIO
from math import isnan
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from fsr.cli.fresh import Fresh
from fsr.cli.load_generator import Outcome, Plan, drive
from fsr.cli.load_report import Row, as_json, markdown, plot
from fsr.cli.load_summary import percentiles, summarise
from fsr.cli.main import app
from fsr.client import InvalidRequestError, NotFoundError, OverloadedError


@pytest.mark.parametrize("values", [[1, 2, 3, 4], [4, 1, 3, 2], [0.5, 7, 0.25], [7], [1, 2]])
def test_percentiles_interpolate_linearly(values):
    expected = dict(zip(("p50", "p90", "p95", "p99", "max"), np.percentile(values, [50, 90, 95, 99, 100]), strict=True))
    assert percentiles(values) == pytest.approx(expected)


def test_percentiles_of_nothing_are_nan():
    assert all(map(isnan, percentiles([]).values()))


def plan(**more):
    return Plan(**({"images": [b"x"], "question": "?", "clients": 2, "bound": 1.0} | more))


def test_goodput_counts_answers_within_the_bound_after_the_warmup():
    outcomes = [Outcome(due=float(i), ttft=0.1, total=0.5 if i % 2 else 1.5, tokens=11) for i in range(12)]
    outcomes[4] = Outcome(due=4.0, ttft=None, total=0.1, error="OverloadedError")
    summary = summarise(outcomes, plan(warmup=2))
    seconds = 11.5 - 2  # from the first counted request, due at 2, to the end of the last
    assert summary.requests == 10 and summary.errors == {"OverloadedError": 1}
    assert summary.seconds == pytest.approx(seconds)
    assert summary.requests_per_second == pytest.approx(9 / seconds)
    assert summary.goodput == pytest.approx(5 / seconds) and summary.good_share == 0.5
    assert summary.tokens_per_second == pytest.approx(99 / seconds)
    assert summary.ttft["p50"] == 0.1 and summary.latency["max"] == 1.5
    assert summary.time_per_output_token == pytest.approx(0.04)


def test_run_without_answers_is_valid_json():
    row = Row("16", "4", summarise([], plan()))
    assert isnan(row.summary.goodput)
    assert json.loads(as_json([row], {}))["runs"][0]["goodput"] is None
    assert "| 16 | 4 |" in markdown([row], 1.0) and " | - | 0 | 0 |" in markdown([row], 1.0)


def test_plot_shows_throughput_goodput_first_token_and_latency(tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: drawn.append(figure) or save(figure, *args))
    rows = []
    for budget, total in (("16", 0.5), ("144", 2.0)):
        outcomes = [Outcome(due=i, ttft=total / 4, total=total, tokens=3) for i in range(8)]
        rows += [Row(budget, load, summarise(outcomes, plan())) for load in "12"]
    plot(rows, tmp_path / "load.png", 1.0)
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    shown = {axes.get_title(): [line.get_ydata()[0] for line in axes.get_lines()] for axes in drawn[0].axes}
    few, many = rows[0].summary, rows[2].summary
    assert shown == {
        "throughput": [few.requests_per_second, many.requests_per_second],
        "goodput: answers within 1 s": [few.goodput, 0],
        "time to first token, 95th percentile": pytest.approx([125, 500]),
        "time to the whole answer, 95th percentile": pytest.approx([500, 2000]),
    }


def test_errors_say_why_they_happened():
    """Once for each kind of message, with the most frequent first."""
    said = ["gateway: 64 requests are in flight", "gateway: 65 requests are in flight", "deadline: has passed", ""]
    errors = ["OverloadedError", "OverloadedError", "DeadlineError", "no end"]
    outcomes = [
        Outcome(due=i, ttft=None, total=0.1, error=error, reason=reason)
        for i, (error, reason) in enumerate(zip(errors, said, strict=True))
    ]
    summary = summarise(outcomes, plan())
    assert summary.errors == {"OverloadedError": 2, "DeadlineError": 1, "no end": 1}
    assert list(summary.reasons.items()) == [
        ("OverloadedError: gateway: 64 requests are in flight", 2),
        ("DeadlineError: deadline: has passed", 1),
        ("no end", 1),
    ]
    row = Row("16", "4", summary)
    assert "- budget 16, load 4: 2 x OverloadedError: gateway: 64 requests are in flight\n" in markdown([row], 1.0)
    assert json.loads(as_json([row], {}))["runs"][0]["reasons"] == summary.reasons
    assert "Errors" not in markdown([Row("16", "4", summarise([], plan()))], 1.0)


@pytest.mark.parametrize("wrong", [{"rate": 2.0}, {"clients": None}, {"clients": 0}, {"seconds": 0}, {"bound": -1}])
def test_wrong_plan_is_refused(wrong):
    with pytest.raises(InvalidRequestError, match="load: "):
        plan(**wrong)


def test_infinite_rate_is_refused():
    with pytest.raises(InvalidRequestError, match="load: rate must be finite"):
        plan(clients=None, rate=float("inf"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--json", "no/such/folder.json"], "--json: cannot write no/such/folder.json"),
        (["--markdown", "/"], "--markdown: cannot write /"),
        (["--plot", "load.xyz"], "--plot: load.xyz has no ending that matplotlib can write"),
    ],
)
def test_file_that_cannot_be_written_is_refused_before_the_load(more, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.png").write_bytes(b"x")
    closed_port = ["--gateway", "127.0.0.1:1"]  # the load would fail there, if it began
    done = CliRunner().invoke(app, ["load", "scene.png", "--clients", "1", *closed_port, *more])
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {says}") and done.stderr.count("\n") == 1


async def test_answer_without_end_is_an_outcome():
    class Mute:
        async def stream(self, images, question, **options):
            return
            yield

    outcomes = await drive(Mute(), plan(requests=3))
    assert [outcome.error for outcome in outcomes] == ["no end"] * 3


class Server:
    """A client whose answers take `seconds` each; counts the requests in flight."""

    def __init__(self, seconds):
        self.seconds, self.in_flight, self.peak = seconds, 0, 0

    async def stream(self, image, question, **options):
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        await asyncio.sleep(self.seconds)
        self.in_flight -= 1
        usage = SimpleNamespace(
            completion_tokens=1, visual_tokens_kept=1, prompt_tokens=1, cached_images=0, failovers=0, retries=0
        )
        yield SimpleNamespace(token_ids=(1,), usage=usage)


class Refusing:
    """A client whose requests all fail."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    async def stream(self, image, question, **options):
        self.calls += 1
        raise self.error
        yield


@pytest.mark.parametrize("size", [{"clients": 2}, {"clients": None, "rate": 500.0}])
async def test_wrong_request_ends_the_load_and_full_service_does_not(size):
    for wrong in (InvalidRequestError("method.name: 'x' is unknown"), NotFoundError("model: 'x' is unknown")):
        client = Refusing(wrong)
        with pytest.raises(type(wrong), match="is unknown"):
            await drive(client, plan(**size, requests=40))
        assert client.calls < 40
    outcomes = await drive(Refusing(OverloadedError("full")), plan(**size, requests=3))
    assert [(outcome.error, outcome.reason) for outcome in outcomes] == [("OverloadedError", "full")] * 3


async def test_closed_loop_has_no_more_requests_in_flight_than_clients():
    server = Server(0.01)
    outcomes = await drive(server, plan(clients=3, requests=10))
    assert len(outcomes) == 10 and server.peak == 3


async def test_open_loop_does_not_wait_for_answers_and_keeps_its_limits():
    server = Server(0.2)
    outcomes = await drive(server, plan(clients=None, rate=200.0, requests=20))
    assert len(outcomes) == 20 and server.peak > 3
    few = await drive(Server(0), plan(clients=None, rate=1000.0, seconds=0.05))
    assert len(few) < 200


class Recording(Server):
    """A client that keeps the pictures and the questions that it was asked."""

    def __init__(self):
        super().__init__(0)
        self.pictures, self.questions = [], []

    async def stream(self, images, question, **options):
        self.pictures += images
        self.questions.append(question)
        async for chunk in super().stream(images, question, **options):
            yield chunk


def picture(colour, size=(64, 48)):
    file = BytesIO()
    Image.new("RGBA", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [{"clients": 2}, {"clients": None, "rate": 500.0}])
@pytest.mark.parametrize(("fresh", "pictures", "questions"), [(Fresh("1"), 12, 12), (None, 2, 1)])
async def test_requests_when_fresh_all_have_another_picture_and_question(size, fresh, pictures, questions):
    client, images = Recording(), [picture("red"), picture("blue")]
    await drive(client, plan(**size, images=images, requests=12, fresh=fresh))
    assert len(client.pictures) == 12 and len(set(client.pictures)) == pictures
    assert len(client.questions) == 12 and len(set(client.questions)) == questions
    assert all(question.startswith("?") for question in client.questions)


async def test_requests_when_fresh_are_the_same_with_the_same_seed_and_no_others():
    drawn = {}
    for name, seed in (("one", "1"), ("again", "1"), ("other", "2")):
        client = Recording()
        await drive(client, plan(images=[picture("red")], requests=20, clients=3, fresh=Fresh(seed)))
        drawn[name] = set(zip(client.pictures, client.questions, strict=True))
    assert drawn["one"] == drawn["again"] and len(drawn["one"]) == 20
    assert not drawn["one"] & drawn["other"]
    assert len({question for _, question in drawn["one"]}) == 20


async def test_requests_without_a_picture_when_fresh_have_new_questions():
    client = Recording()
    await drive(client, plan(images=[], requests=5, fresh=Fresh("1")))
    assert len(set(client.questions)) == 5 and not client.pictures


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (640, 480)])
def test_a_varied_picture_has_its_size_and_new_pixels(size):
    varied = [Image.open(BytesIO(Fresh("1").picture(picture("red", size), number))) for number in range(8)]
    assert {(one.format, one.mode, one.size) for one in varied} == {("JPEG", "RGB", size)}
    assert len({one.tobytes() for one in varied}) > 4


def test_fresh_pictures_when_one_cannot_be_read_are_refused_before_the_load(tmp_path):
    (tmp_path / "scene.png").write_bytes(b"no picture")
    flags = ["--fresh", "--clients", "1", "--gateway", "127.0.0.1:1"]
    done = CliRunner().invoke(app, ["load", str(tmp_path / "scene.png"), *flags])
    assert done.exit_code == 1 and done.stderr.startswith("error: --fresh: a picture cannot be read")
    assert done.stderr.count("\n") == 1
