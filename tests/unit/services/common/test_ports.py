"""Whether a port is free, and who can reach it."""

import socket
from pathlib import Path

import pytest

from fsr.common.network.ports import is_loopback, join, listen_error


@pytest.fixture
def port(free_ports):
    return free_ports()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_port_that_nobody_holds_is_free(port, host):
    assert listen_error(host, port) is None


def test_port_of_an_outgoing_connection_is_not_free(port):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.bind(("127.0.0.1", port))
        client.connect(server.getsockname())
        assert "in use" in listen_error("127.0.0.1", port)
        assert "in use" in listen_error("0.0.0.0", port)


def test_port_of_a_server_is_not_free(port):
    with socket.create_server(("127.0.0.1", port)):
        assert "in use" in listen_error("127.0.0.1", port)


def test_host_that_is_not_of_this_machine_is_named(port):
    assert "assign" in listen_error("192.0.2.1", port)
    assert listen_error("no.such.host.invalid", port)


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ports_by_ipv6_are_bound_too(port, host):
    try:
        with socket.create_server(("::1", port), family=socket.AF_INET6):
            assert "in use" in listen_error(host, port)
    except OSError:
        assert listen_error(host, port)  # a machine without IPv6


def test_loopback_is_told_from_other_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "gateway", "")))


def test_address_with_ipv6_has_brackets():
    assert join("::1", 1) == join("[::1]", 1) == "[::1]:1" and join("a", 1) == "a:1"


def test_no_page_names_a_default_port_of_before():
    root = Path(__file__).parents[4]
    for path in [root / "README.md", *(root / "docs").glob("*.md"), *(root / "deploy").rglob("*.yaml")]:
        assert not [port for port in range(50049, 50073) if str(port) in path.read_text()], path
