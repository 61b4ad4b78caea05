"""What pictures and questions may cost the encoder that everybody shares."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from fsr.common.health import check
from helpers import checkpoints
from helpers.costly_files import jpeg_of_scans
from helpers.hostile.callers import Input, call_all
from helpers.hostile.good_requests import compress_request, encode_request, generate_request
from helpers.hostile.keys import HOSTILE
from helpers.hostile.outcomes import check_outcomes
from helpers.hostile.pictures import dear_pictures, large_picture
from helpers.waiting import until

REFUSED = {"INVALID_ARGUMENT"}
IDLE_SECONDS, IDLE_CPU = 2.0, 0.8
TIMES_SLOWER = 3


def assert_idle(service):
    """A process that nobody asks anything does nothing; a thread that goes on with old work would show."""
    before = service.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    assert service.cpu_seconds() < before + IDLE_CPU


@pytest.fixture(scope="module")
def scans(form):
    return jpeg_of_scans(*form.of((2000, 2048), (5000, 6320)))


@pytest.mark.parametrize("at", ["gateway", "encoder"])
def test_progressive_jpegs_of_many_scans_are_refused(form, gateway, system, services, attackers, beside, scans, at):
    """They are counted before anything is decoded. Each file is another one: no cache knows it."""
    if at == "gateway":
        address, where, make = gateway.address, "Compress", compress_request
    else:
        address, where, make = system["encoder"], "Encode", encode_request
    wave = 0

    def attack():
        nonlocal wave
        wave += 1
        files = [scans + bytes([wave, number]) for number in range(6)]
        inputs = [Input(where=where, data=make(file).SerializeToString(), what="scans") for file in files]
        outcomes = attackers(call_all, address, inputs, key=HOSTILE, timeout=5, at_once=6)
        check_outcomes(outcomes, REFUSED)
        assert all("images[0]" in outcome.details for outcome in outcomes)

    beside(attack)
    assert_idle(services["encoder"])


def test_pictures_that_are_dear_to_decode_are_refused_or_answered_in_time(
    form, gateway, services, attackers, beside, picture
):
    pictures = dear_pictures(picture, form.of(20, 200))
    if form.whole:
        pictures["40 Mpixel of 64 bits"] = large_picture(6300, 6300, depth=16, colour=6)
    inputs = [
        Input(where="Compress", data=compress_request(file).SerializeToString(), what=name)
        for name, file in pictures.items()
    ]

    def attack():
        outcomes = attackers(call_all, gateway.address, inputs, key=HOSTILE, at_once=2, timeout=60)
        check_outcomes(outcomes, {"OK", "INVALID_ARGUMENT"})

    beside(attack)
    assert_idle(services["encoder"])
    assert services["encoder"].memory < 3000


@pytest.mark.parametrize("rpc", ["Compress", "Generate", "Encode"])
def test_long_questions_are_refused_before_anything_runs(
    form, gateway, system, services, attackers, beside, picture, rpc
):
    """The text tower would read them in hundreds of chunks."""
    address = system["encoder"] if rpc == "Encode" else gateway.address
    inputs = []
    for number in range(form.of(4, 12)):
        question = "a" * 60_000 + str(number)
        if rpc == "Generate":
            request = generate_request(picture, question)
        else:
            request = (compress_request if rpc == "Compress" else encode_request)(picture, question=question)
        inputs.append(Input(where=rpc, data=request.SerializeToString(), what="long question"))
    used = services["encoder"].cpu_seconds()

    def attack():
        check_outcomes(attackers(call_all, address, inputs, key=HOSTILE, at_once=12), REFUSED)

    beside(attack)
    if not form.whole:
        assert services["encoder"].cpu_seconds() < used + 5


def test_timeouts_that_requests_cause_are_no_fault_of_the_encoder(form, gateway, attackers, beside, picture):
    """Deadlines that pass while a picture is decoded, or before. The fixture `unharmed` looks at the replicas."""
    large = large_picture(*form.of((2500, 2500), (6300, 6300)))

    def attack():
        inputs = [
            Input(where="Compress", data=compress_request(large + bytes([number])).SerializeToString(), what="large")
            for number in range(form.of(2, 8))
        ]
        for timeout in (0.001, 0.05, 0.5):
            outcomes = attackers(call_all, gateway.address, inputs, key=HOSTILE, timeout=timeout)
            check_outcomes(outcomes, {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})

    beside(attack)


def test_many_pictures_of_one_request_leave_room_for_others(form, gateway, attackers, beside, picture):
    inputs = [
        Input(
            where="Compress",
            data=compress_request(*(picture + bytes([number, j]) for j in range(16))).SerializeToString(),
            what="sixteen pictures",
        )
        for number in range(form.of(2, 8))
    ]

    def attack():
        check_outcomes(
            attackers(call_all, gateway.address, inputs, key=HOSTILE, at_once=4), {"OK", "RESOURCE_EXHAUSTED"}
        )

    beside(attack)


def test_frames_without_number_are_refused_before_they_are_read(system, services, attackers, picture):
    request = encode_request(picture)
    request.images[0].ClearField("data")
    request.images[0].frames.extend([picture[:40]] * 50_000)
    used = services["encoder"].cpu_seconds()
    inputs = [Input(where="Encode", data=request.SerializeToString(), what="frames")]
    check_outcomes(attackers(call_all, system["encoder"], inputs), REFUSED)
    assert services["encoder"].cpu_seconds() < used + 2


@pytest.fixture(scope="module")
def encoder_of_large_pictures(spawn, tmp_path_factory):
    """Of a small model without trained weights that makes 16,384 tokens of a picture of a Mpixel."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(7)
    checkpoints.FAMILIES["qwen2_vl"](folder)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings["size"]["longest_edge"] = 2**20
    file.write_text(json.dumps(settings))
    service = spawn("encoder", "--model", str(folder))
    until(lambda: check(service.address, ray_serve=True, timeout=5) is None, 300)
    return service.address


@pytest.mark.cluster
@pytest.mark.parametrize("method", ["scope", "fsr", "divprune"])
def test_methods_that_compare_every_two_tokens_are_refused_for_large_budgets(
    encoder_of_large_pictures, attackers, picture, method
):
    """Before the vision tower runs. Small requests beside them are answered as soon as before."""
    address, large = encoder_of_large_pictures, Image.open(io.BytesIO(picture)).resize((1024, 1024))
    out = io.BytesIO()
    large.save(out, "PNG")
    hostile, small = encode_request(out.getvalue()), encode_request(picture)
    for request in (hostile, small):
        request.method.Clear()
        request.method.name = method
    hostile.budget.keep_ratio = 0.9
    inputs = [Input(where="Encode", data=hostile.SerializeToString(), what=method)] * 4
    neighbours = [Input(where="Encode", data=small.SerializeToString(), what="small")] * 100
    call_all(address, neighbours[:10])
    quiet = call_all(address, neighbours, at_once=1)
    with ThreadPoolExecutor(1) as thread:
        beside = thread.submit(call_all, address, neighbours, at_once=1)
        while not beside.done():
            outcomes = attackers(call_all, address, inputs)
            check_outcomes(outcomes, REFUSED)
            assert all(outcome.details.startswith("budget: ") for outcome in outcomes)
            time.sleep(0.5)
    check_outcomes([*quiet, *beside.result()], {"OK"})
    slowest, slowest_beside = (sorted(one.seconds for one in some)[-2] for some in (quiet, beside.result()))
    assert slowest_beside <= TIMES_SLOWER * slowest
