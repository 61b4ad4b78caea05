"""The SDK's own rules."""

import inspect
import json
import re
import subprocess
import sys

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

import fsr.client
from fsr.cli.main import app
from fsr.client import Client, ClientError, InvalidRequestError, OverloadedError, Tls, Video, errors
from fsr.client.aio import AsyncClient
from fsr.client.errors import from_rpc
from fsr.client.requests import budget_of, compress_request, generate_request
from fsr.v1 import types_pb2


def rpc_error(code, details="", **trailing):
    metadata = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in trailing.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


def test_the_tree_in_the_docstring_is_the_tree():
    kinds = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, ClientError) and kind is not ClientError
    }
    assert set(re.findall(r"[├└]── (\w+)", errors.__doc__)) == kinds
    assert kinds | {"ClientError"} <= set(fsr.client.__all__)
    assert all(hasattr(fsr.client, name) for name in fsr.client.__all__)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_becomes_one_of_the_tree(code):
    assert isinstance(from_rpc(rpc_error(code, "field: reason"), 1), ClientError)


def test_hints_travel_with_the_error():
    trailing = {"retry_after_ms": "1500", "fsr_request_id": "r", "fsr_encoders": "e:1", "fsr_decoders": "a:1,b:1"}
    error = from_rpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", **trailing), 1)
    assert isinstance(error, OverloadedError) and error.retry_after == 1.5
    assert error.route.decoders == ("a:1", "b:1") and error.route.encoders == ("e:1",)


@pytest.mark.parametrize(
    ("code", "details", "says"),
    [
        (grpc.StatusCode.UNAVAILABLE, "errors resolving x: [no such host]", "gateway: its address leads nowhere"),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", "gateway: what answers at this address is none"),
    ],
)
def test_an_address_that_is_no_gateways_is_named(code, details, says):
    assert str(from_rpc(rpc_error(code, details), 1)).startswith(says)


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:50050", "https://gateway"])
async def test_a_web_address_is_refused(address):
    with pytest.raises(InvalidRequestError, match=r"gateway: .* write host:port"):
        AsyncClient(address)


def test_what_a_tool_of_the_core_refuses_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["scene", "-o", str(tmp_path / "scene.xyz")])
    assert done.exit_code == 1 and done.stderr.startswith("error: --output: cannot write")


def test_the_scene_that_is_drawn_by_default_has_the_star_that_examples_ask_for(tmp_path):
    done = CliRunner().invoke(app, ["scene", "-o", str(tmp_path / "scene.png"), "--json"])
    asked = {row["question"]: row["answer"] for row in json.loads(done.stdout)["questions"]}
    assert asked["Where is the red star?"] == "top right" and asked["What colour is the star?"] == "red"


def test_a_message_that_is_too_large_is_the_callers_mistake():
    details = "SERVER: Received message larger than max (100 vs. 10)"
    error = from_rpc(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, details), 1)
    assert isinstance(error, InvalidRequestError) and "scale the pictures down" in str(error)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": "/no/such/picture"}, "image: cannot read"),
        ({"images": "/"}, r"image: / is a folder; Video.from_folder"),
        ({"images": "clip.mp4"}, r"image: clip.mp4 is a video file; .*ffmpeg"),
        ({"images": [3]}, "image: int is no picture"),
        ({"images": None}, "image: NoneType is no picture"),
        ({"method": 3}, "request: "),
        ({"images": Video([b"x", "/no/such/frame"])}, r"frames\[1\]: cannot read /no/such/frame"),
        ({"spread": "uneven"}, "spread: 'uneven' is unknown; use even or free"),
        ({"budget": True}, "budget: expected"),
        ({"budget": 2**40}, "budget: .* no sensible number"),
        ({"wire_dtype": "fp8"}, "wire_dtype: 'fp8' is unknown"),
        ({"options": {"rho": object()}}, "options: "),
        ({"options": {"rho": float("nan")}}, r"^options\.rho: nan is no finite number; leave it out"),
        ({"options": {"kappa": 1, "list": [1, float("inf")]}}, r"^options\.list: inf is no finite number"),
        ({"seed": -1}, "seed: -1 is out of range"),
        ({"max_tokens": 2**40}, r"max_tokens: 1099511627776 is out of range"),
    ],
)
def test_what_cannot_be_sent_is_named(arguments, says):
    given = {"images": b"x", "question": "?"} | arguments
    with pytest.raises(InvalidRequestError, match=says):
        generate_request(given.pop("images"), given.pop("question"), **given)


def test_numpy_numbers_are_budgets_too():
    assert budget_of(np.int64(8)).tokens == 8 and budget_of(np.float32(0.5)).keep_ratio == 0.5


def test_compression_of_what_cannot_be_sent_is_named():
    with pytest.raises(InvalidRequestError, match="request: "):
        compress_request(b"x", "?", method=3)


async def test_a_client_without_a_loop_of_its_own_says_what_to_use():
    with pytest.raises(RuntimeError, match="use AsyncClient"):
        Client()


def test_a_folder_for_logs_that_is_a_file_is_named(frames):
    done = CliRunner().invoke(app, ["up", "--logs", str(frames / "f1.PNG")])
    assert done.exit_code == 1 and "error: --logs: cannot make" in done.stderr


@pytest.fixture
def frames(tmp_path):
    """Frames whose names do not sort as text, and a file that is none."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in (10, 9, 1):
        (folder / f"f{number}.PNG").write_bytes(bytes([number]))
    (folder / "notes.txt").write_text("no frame")
    return folder


@pytest.mark.parametrize(("spread", "wire"), [("even", types_pb2.SPREAD_EVEN), ("free", types_pb2.SPREAD_FREE)])
@pytest.mark.parametrize(("budget", "kind"), [(8, "tokens"), (0.1, "keep_ratio"), ("auto", "auto")])
@pytest.mark.parametrize("build", [generate_request, compress_request])
def test_videos_travel_as_their_frames_beside_pictures(frames, build, budget, kind, spread, wire):
    request = build([b"picture", Video.from_folder(frames, 4.0)], "?", budget=budget, spread=spread)
    picture, video = request.images
    assert (picture.data, list(picture.frames)) == (b"picture", [])
    assert (video.data, list(video.frames), video.frames_per_second) == (b"", [b"\1", b"\t", b"\n"], 4.0)
    assert (request.budget.WhichOneof("kind"), request.budget.spread) == (kind, wire)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Video([]), "frames: is empty"),
        (lambda: Video("clip"), "frames: expected a list of frames"),
        (lambda: Video([b"x"], 0.0), "frames_per_second: 0.0 is not above 0"),
        (lambda: Video([b"x"], float("nan")), "frames_per_second: nan"),
        (lambda: Video.from_folder("/no/such/folder"), "video: cannot read /no/such/folder"),
    ],
)
def test_what_is_no_video_is_named(make, says):
    with pytest.raises(InvalidRequestError, match=says):
        make()


@pytest.mark.parametrize("command", ["ask", "explain"])
def test_commands_say_in_one_line_what_is_no_video(frames, tmp_path, command):
    (tmp_path / "empty").mkdir()
    picture, more = frames / "f1.PNG", ["-o", "why.png"] if command == "explain" else []
    for given, says in (
        ([tmp_path / "empty"], "holds no frames"),
        ([frames, "--fps", "0"], "frames_per_second: 0.0 is not above 0"),
        ([picture, "--fps", "2"], "--fps: there is no video"),
        ([tmp_path / "missing.png"], "cannot read"),
    ):
        done = CliRunner().invoke(app, [command, str(given[0]), "?", *given[1:], *more])
        assert done.exit_code == 1 and says in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask"], "error: Missing argument "),
        (["ask", "a.png", "?", "--bugdet", "8"], "error: No such option: --bugdet"),
        (["ask", "a.png", "?", "--spread", "uneven"], "error: Invalid value for '--spread': "),
        (["aks"], "error: No such command 'aks'"),
        (["--nothing"], "error: No such option: --nothing; see fsr --help\n"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_one_line(arguments, says):
    done = CliRunner().invoke(app, arguments, prog_name="fsr")
    assert done.exit_code == 2 and done.stdout == "" and done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(" --help\n")


def test_without_arguments_the_command_shows_its_help():
    done = CliRunner().invoke(app, [])
    assert "Usage:" in done.output and "error:" not in done.output


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "fsr.cli.main", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and done.stderr.startswith(b"error: the disk") and done.stderr.count(b"\n") == 1


async def test_oversized_requests_never_leave():
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequestError, match=r"bytes exceed \d+; scale the pictures down"):
            await client.ask(b"x" * (65 * 2**20), "?")


def test_half_a_client_certificate_is_refused():
    with pytest.raises(InvalidRequestError, match="cert and key belong together"):
        Tls(cert="x")
    with pytest.raises(InvalidRequestError, match="cannot read ca"):
        Tls(ca="/no/such/ca").credentials()


async def test_a_key_that_no_header_can_carry_is_refused():
    with pytest.raises(InvalidRequestError, match="api_key"):
        AsyncClient(api_key="a\nb")
