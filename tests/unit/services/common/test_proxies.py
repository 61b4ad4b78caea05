"""Which connections go through the proxy of the environment: real channels, and a proxy that notes what it is asked."""

import asyncio
import socket
import threading
from contextlib import suppress

import grpc
import pytest

from fsr.client import AsyncClient, ClientError
from fsr.common.health import check
from fsr.common.network.proxies import may_use_proxy
from fsr.common.process.draining import Draining
from fsr.common.process.lifecycle import ServiceProcess, open_port

FAR = "192.0.2.1"  # of a network for documentation (RFC 5737): nobody is there
NAMES = [f"{name}_proxy" for name in ("grpc", "https", "http", "no_grpc", "no")]


class Proxy:
    """Accepts connections, notes their first line, and closes them."""

    def __init__(self):
        self.lines = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection, connection.makefile("rb") as received:
                    self.lines.append(received.readline().decode().strip())

    def close(self):
        self._socket.close()


@pytest.fixture
def proxy(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    proxy = Proxy()
    monkeypatch.setenv("http_proxy", proxy.url)
    yield proxy
    proxy.close()


async def call(address):
    async with AsyncClient(address) as client:
        with pytest.raises(ClientError):
            await client.models(timeout=2)


async def test_client_when_the_gateway_is_far_uses_the_proxy(proxy):
    await call(f"{FAR}:20050")
    assert f"CONNECT {FAR}:20050 HTTP/1.1" in proxy.lines


@pytest.mark.parametrize(
    ("variable", "value"),
    [("no_proxy", FAR), ("NO_PROXY", FAR), ("no_proxy", "*"), ("no_proxy", "example, 192.0.2.0/24")],
)
async def test_client_when_no_proxy_names_the_gateway_uses_none(proxy, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    await call(f"{FAR}:20050")
    assert proxy.lines == []


@pytest.mark.parametrize("address", ["127.0.0.1:9", "localhost:9", "[::1]:9", "dns:///localhost:9", "ipv4:127.0.0.1:9"])
async def test_client_when_the_gateway_is_on_this_machine_uses_none(proxy, address):
    await call(address)
    assert proxy.lines == []


@pytest.mark.parametrize(
    ("host", "may"), [("a.example", False), ("example", False), ("b.test", True), ("xexample", True)]
)
def test_proxy_when_no_proxy_names_a_domain_is_none_there(proxy, monkeypatch, host, may):
    monkeypatch.setenv("no_proxy", ".example")
    assert may_use_proxy(host) is may


async def test_health_when_a_proxy_is_set_asks_the_service_itself(proxy):
    server = grpc.aio.server()
    process = ServiceProcess(server, "fsr.v1.Test", Draining("service: is shutting down"), 60.0)
    address = open_port(server, "127.0.0.1", 0)
    await server.start()
    await process.set_serving(True)
    assert await asyncio.to_thread(check, address) is None
    await server.stop(None)
    assert proxy.lines == []
