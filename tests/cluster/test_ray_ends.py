"""Processes of a local Ray are killed under load: the encoder comes back by itself, and no request is lost."""

import asyncio
import io
import itertools
import time

import psutil
import pytest

from fsr.client import AsyncClient
from fsr_core.tiny.scenes import draw, make_scene
from helpers.processes import encoder_proxy, process_of
from helpers.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
STEADY_SECONDS = 61  # so long must a Ray have lived that the encoder starts another one


@pytest.fixture(scope="module")
def picture():
    out = io.BytesIO()
    draw(make_scene(1)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def pair(spawn, served_model):
    """An encoder as `python -m fsr.encoder` starts it, with nothing that watches it, and a gateway."""
    encoder = spawn("encoder", *served_model)
    patience = ("--discovery-seconds", "0.5", "--failover-wait-seconds", "600", "--encode-seconds", "300")
    gateway = spawn("gateway", "--encoders", encoder.address, "--decoders", "127.0.0.1:9", *patience)
    return encoder, gateway


async def longest_gap(gateway, picture, disturb):
    """Seconds without a success, at most, while four callers compress one picture after another and `disturb` runs."""
    successes, over = [], False

    async def caller(client, number):
        while not over:
            answer = await client.compress(picture, f"Where is star {number}?", budget=16, timeout=900)
            assert len(answer.images[0].index) == 16
            successes.append(time.monotonic())
            await asyncio.sleep(0.02)

    async with AsyncClient(gateway.address) as client, asyncio.TaskGroup() as group:
        await client.compress(picture, "Ready?", budget=16, timeout=900)
        for number in range(4):
            group.create_task(caller(client, number))  # raises if a request is lost
        await asyncio.to_thread(disturb, lambda: len(successes))
        over = True
    return max(later - earlier for earlier, later in itertools.pairwise(successes))


def part_of_ray(encoder, name) -> psutil.Process:
    driver = process_of("encoder", encoder.address.rpartition(":")[2])
    (process,) = (child for child in driver.children() if child.name() == name)
    return process


def killing(find):
    """Kills the process that `find` finds, and waits until requests succeed again."""

    def disturb(successes):
        before = successes()
        until(lambda: successes() >= before + 20)
        victim = find()
        victim.kill()
        victim.wait(60)
        time.sleep(1)  # what was on its way has come
        before = successes()
        until(lambda: successes() >= before + 20, seconds=900)

    return disturb


@pytest.fixture(scope="module")
def wait_until_ready(pair):
    """Until both halves of the way are there; a gateway without a decoder never says that it serves."""
    encoder, _ = pair

    def wait():
        encoder.wait_until_it_says('"event": "serving"', seconds=900)

    return wait


async def test_proxy_that_is_killed_is_replaced_and_no_request_is_lost(pair, wait_until_ready, picture):
    encoder, gateway = pair
    await asyncio.to_thread(wait_until_ready)
    gap = await longest_gap(gateway, picture, killing(lambda: encoder_proxy(encoder.address.rpartition(":")[2])))
    print(f"proxy killed: {gap:.1f} s without a success")


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
async def test_encoder_whose_ray_is_killed_starts_another_one_and_no_request_is_lost(
    pair, wait_until_ready, picture, name
):
    encoder, gateway = pair
    await asyncio.to_thread(wait_until_ready)
    driver = process_of("encoder", encoder.address.rpartition(":")[2])
    started = time.monotonic()
    old = part_of_ray(encoder, name).pid
    await asyncio.sleep(max(0.0, STEADY_SECONDS - (time.monotonic() - started)))
    gap = await longest_gap(gateway, picture, killing(lambda: part_of_ray(encoder, name)))
    print(f"{name} killed: {gap:.1f} s without a success")
    assert driver.is_running() and process_of("encoder", encoder.address.rpartition(":")[2]).pid == driver.pid
    assert part_of_ray(encoder, name).pid != old
    assert "starting again, with a new Ray" in encoder.log.read_text()
