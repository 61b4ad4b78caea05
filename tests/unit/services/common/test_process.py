"""The life of a service process: ports, health, draining, end."""

import asyncio
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from fsr.common.errors import NotReady
from fsr.common.process.draining import Draining
from fsr.common.process.lifecycle import MetricsServer, ServiceProcess, check_port, open_port


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_ports_when_in_use_exit_with_one_line(taken):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for option, open_it in (
        ("--port", lambda: check_port("127.0.0.1", taken)),
        ("--port", lambda: open_port(server, "127.0.0.1", taken)),
        ("--health-port", lambda: open_port(server, "127.0.0.1", taken, "--health-port")),
        ("--metrics-port", lambda: MetricsServer("127.0.0.1", taken, CollectorRegistry())),
    ):
        with pytest.raises(SystemExit) as caught:
            open_it()
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"error: {option}: cannot listen on 127.0.0.1:{taken} (") and "in use" in line


async def test_draining_when_calls_are_in_flight_waits_for_them_and_refuses_new_ones():
    draining = Draining("service: is shutting down", 0.5)
    with draining.call():
        ended = asyncio.create_task(draining.drain(60))
        await asyncio.sleep(0.01)
        assert not ended.done() and draining.in_flight == 1
        with pytest.raises(NotReady, match="shutting down") as refused, draining.call():
            pass
        assert refused.value.retry_after == 0.5
    await asyncio.wait_for(ended, 10)
    assert draining.in_flight == 0


async def test_draining_when_a_call_does_not_end_is_bounded():
    draining = Draining("service: is shutting down")
    with draining.call():
        await asyncio.wait_for(draining.drain(0.01), 10)


async def _process(draining):
    server = grpc.aio.server()
    return ServiceProcess(server, "fsr.v1.Test", draining, 60.0), open_port(server, "127.0.0.1", 0)


async def _status(address, service):
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        response = await health_pb2_grpc.HealthStub(channel).Check(request)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


async def test_process_when_stopped_reports_not_serving_and_answers_until_drained():
    draining, stop = Draining("service: is shutting down"), asyncio.Event()
    process, address = await _process(draining)
    await process.set_serving(True)
    with draining.call():
        running = asyncio.create_task(process.run(stop, asyncio.sleep(0)))  # a background that ends stops nothing
        assert [await _status(address, service) for service in ("", "fsr.v1.Test")] == ["SERVING"] * 2
        stop.set()
        while await _status(address, "") == "SERVING":
            await asyncio.sleep(0.01)
        await process.set_serving(True)  # comes too late
        assert [await _status(address, service) for service in ("", "fsr.v1.Test")] == ["NOT_SERVING"] * 2
        assert not running.done()
    await asyncio.wait_for(running, 10)
    with pytest.raises(grpc.RpcError):
        await _status(address, "")


async def test_process_when_its_background_fails_stops_with_that_error():
    async def fail():
        raise RuntimeError("background")

    process, _ = await _process(Draining("service: is shutting down"))
    with pytest.raises(RuntimeError, match="background"):
        await asyncio.wait_for(process.run(asyncio.Event(), fail()), 10)
