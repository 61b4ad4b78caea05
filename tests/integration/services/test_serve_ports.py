"""Where Ray Serve's own functions open their ports."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil

with warnings.catch_warnings():  # pydantic 2 warns of how Ray 2.60 declares its schemas
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray.serve._private import default_impl, replica

from ray.util import get_node_ip_address

from fsr.encoder.serve_ports import LISTEN_ON, listen_as_told


def test_ports_of_serve_are_bound_where_they_are_told(monkeypatch, free_ports):
    """Serve itself gives its gRPC servers addresses of every interface."""
    port = free_ports()
    monkeypatch.setenv(LISTEN_ON, "127.0.0.1")
    for module, name in ((default_impl, "add_grpc_address"), (replica, "add_port_to_grpc_server")):
        monkeypatch.setattr(module, name, getattr(module, name))  # what is replaced comes back after the test
    listen_as_told()
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    default_impl.add_grpc_address(server, f"[::]:{port}")
    internal = replica.add_port_to_grpc_server(server, "[::]:0")
    server.start()
    try:
        listening = {c.laddr.port: c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"}
    finally:
        server.stop(None).wait()
    assert listening[port].endswith("127.0.0.1")
    assert listening[internal].endswith(get_node_ip_address())


def test_ports_of_a_ray_of_others_stay_as_serve_binds_them(monkeypatch):
    before = default_impl.add_grpc_address, replica.add_port_to_grpc_server
    monkeypatch.delenv(LISTEN_ON, raising=False)
    assert listen_as_told() == []
    assert (default_impl.add_grpc_address, replica.add_port_to_grpc_server) == before
