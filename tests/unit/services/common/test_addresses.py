"""Hosts and addresses in every form that people write, and sockets that listen there."""

import socket

import pytest

from fsr.common.network.addresses import bare_host, host_of_target, is_this_machine, split_host_port
from fsr.common.network.ports import join, open_socket

IPV6 = pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::]", "::"),
        ("fe80::1%lo", "fe80::1%lo"),
        ("gateway.example", "gateway.example"),
        (" localhost ", "localhost"),
        ("möd.example", "xn--md-fka.example"),
    ],
)
def test_host_when_written_with_or_without_brackets_is_bare(text, host):
    assert bare_host(text) == host


@pytest.mark.parametrize(
    "text", ["", " ", "[]", "[name]", "127.0.0.1:50", "[::1]:50", "::1]", "a b", "http://a", "1:2:3", "ö" * 64]
)
def test_host_when_it_is_none_is_refused_with_a_remedy(text):
    with pytest.raises(ValueError, match=r"; write "):
        bare_host(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:50", "127.0.0.1", 50), ("[::1]:50", "::1", 50), ("name:65535", "name", 65535)],
)
def test_address_when_split_and_put_together_is_the_same(text, host, port):
    assert split_host_port(text) == (host, port)
    assert join(host, port) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("::1:50", r"in brackets, such as \[::1\]:50"),
        ("fd00::1", "in brackets"),
        ("name", "is no address"),
        ("[::1]", "is no address"),
        (":50", "is no address"),
        ("name:0", "is no address"),
        ("name:65536", "is no address"),
        ("name:²", "is no address"),
        ("http://name:50", "is no address"),
        ("[name]:50", "no IPv6 address"),
    ],
)
def test_address_when_it_is_none_is_refused_with_a_remedy(text, reason):
    with pytest.raises(ValueError, match=rf"{reason}.*") as caught:
        split_host_port(text)
    assert "; write " in str(caught.value)


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("name:50", "name"),
        ("name", "name"),
        ("[::1]", "::1"),
        ("dns:name:50", "name"),
        ("dns:///[::1]:50", "::1"),
        ("dns://8.8.8.8/name:50", "name"),
        ("ipv4:10.0.0.1:50,10.0.0.2:50", "10.0.0.1"),
        ("unix:/run/gateway", ""),
    ],
)
def test_target_in_any_form_of_grpc_has_a_host(target, host):
    assert host_of_target(target) == host


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("app.localhost", True),
        ("10.0.0.1", False),
        ("fd00::1", False),
        ("localhost.example", False),
    ],
)
def test_host_of_this_machine_is_known(host, here):
    assert is_this_machine(host) is here


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        pytest.param("::1", ["::1"], marks=IPV6),
        pytest.param("::", ["::1", "127.0.0.1"], marks=IPV6),
    ],
)
def test_socket_when_it_listens_on_a_host_is_reached_there(host, reached_at):
    with open_socket(host, 0) as listening:
        for address in reached_at:
            socket.create_connection((address, listening.getsockname()[1]), timeout=10).close()
