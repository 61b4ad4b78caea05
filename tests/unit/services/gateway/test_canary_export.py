import json
import stat

import pytest

from fsr.cli.calibrate.questions import read_questions
from fsr.gateway.canary.export import CanaryExport, question_of
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import types_pb2

PICTURE = b"\x89PNG picture"
SYSTEM, USER, ASSISTANT = types_pb2.ROLE_SYSTEM, types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT


def turn(role, *parts):
    made = [types_pb2.Part(image=part) if isinstance(part, int) else types_pb2.Part(text=part) for part in parts]
    return types_pb2.Message(role=role, parts=made)


def image(*frames, data=b""):
    return types_pb2.Image(data=data, frames=frames, frames_per_second=4.0 if frames else 0)


ONE = [image(data=PICTURE)]
QUESTION = question_of([turn(SYSTEM, "Be short."), turn(USER, 0, "Where?")], ONE)


class Exporter:
    def __init__(self, folder, most=10_000):
        self.folder, self.metrics = folder, Metrics()
        self.export = CanaryExport(folder, most, self.metrics)

    async def add(self, question=QUESTION):
        await self.export.add(question, {"same_answer": False})

    def counted(self, outcome):
        return self.metrics.registry.get_sample_value("fsr_canary_exported_total", {"outcome": outcome})


@pytest.fixture
def exporter(tmp_path):
    return Exporter(tmp_path / "export")


def test_question_when_there_is_a_system_message_is_that_of_the_user():
    assert QUESTION.text == "Where?"


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        ([turn(USER, 0, "a"), turn(ASSISTANT, "b"), turn(USER, "c")], ONE),
        ([turn(USER, 0, 1, "a")], ONE * 2),
        ([turn(USER, "a")], []),
    ],
    ids=["several turns", "two pictures", "none"],
)
def test_question_when_calibrate_could_not_ask_it_is_none(messages, images):
    assert question_of(messages, images) is None


async def test_export_when_a_question_comes_writes_what_calibrate_reads(exporter):
    await exporter.add()
    (question,) = read_questions(exporter.folder / "questions.jsonl", None, None)
    assert (question.text, question.path.read_bytes(), question.is_video) == ("Where?", PICTURE, False)
    assert question.path.suffix == ".png"
    assert exporter.counted("written") == 1


async def test_export_when_a_video_comes_writes_its_frames_in_order(exporter):
    frames = [b"\xff\xd8 %d" % number for number in range(3)]
    await exporter.add(question_of([turn(USER, 0, "What?")], [image(*frames)]))
    (question,) = read_questions(exporter.folder / "questions.jsonl", None, None)
    assert (question.is_video, question.fps) == (True, 4.0)
    assert [path.read_bytes() for path in question.source().frames] == frames


async def test_export_keeps_its_files_to_the_gateways_user(exporter):
    await exporter.add()
    for path in [exporter.folder, *exporter.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_export_when_it_is_full_writes_no_more_also_after_a_restart(tmp_path):
    exporter = Exporter(tmp_path / "e", most=300)
    for number in range(5):
        await exporter.add(question_of([turn(USER, 0, f"{number}?")], [image(data=b"\xff\xd8" + bytes([number] * 60))]))
    size = sum(path.stat().st_size for path in exporter.folder.rglob("*") if path.is_file())
    assert exporter.counted("written") >= 1 and exporter.counted("full") >= 1 and size <= 300
    again = Exporter(tmp_path / "e", most=size + 10)
    await again.add()
    assert again.counted("full") == 1
    assert sum(path.stat().st_size for path in exporter.folder.rglob("*") if path.is_file()) == size


async def test_export_when_the_folder_is_gone_counts_a_failure_and_raises_nothing(exporter):
    (exporter.folder / "questions.jsonl").unlink()
    exporter.folder.rmdir()
    exporter.folder.write_text("in the way")
    await exporter.add()
    assert exporter.counted("failed") == 1


async def test_export_when_a_question_is_unsuitable_counts_it(exporter):
    await exporter.add(None)
    assert exporter.counted("unsuitable") == 1
    assert (exporter.folder / "questions.jsonl").read_bytes() == b""


async def test_export_when_a_picture_comes_again_stores_it_once(exporter):
    await exporter.add()
    await exporter.add()
    lines = (exporter.folder / "questions.jsonl").read_text().splitlines()
    assert len({json.loads(line)["picture"] for line in lines}) == 1 and len(lines) == 2


@pytest.mark.parametrize("options", [{"canary_export": "x"}, {"canary_export_all": True, "canary_share": 0.1}])
def test_settings_when_an_option_has_no_effect_are_refused(options):
    with pytest.raises(ValueError, match=r"canary_export(_all)?: needs canary_"):
        GatewaySettings(**options)
