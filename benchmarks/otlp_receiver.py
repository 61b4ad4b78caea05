"""Receives traces for a benchmark. It is imported, not run."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

import grpc

from fsr.common.wire.transport import server_options

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Receiver:
    """Keeps the requests that services have sent. An empty message is the answer that OTLP has for success."""

    def __init__(self, keeps: bool) -> None:
        self._keeps, self._requests, self._lock = keeps, list[bytes](), threading.Lock()

    def export(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if self._keeps:
            with self._lock:
                self._requests.append(request)
        return b""

    def requests(self) -> list[bytes]:
        """All that came so far, each an ExportTraceServiceRequest."""
        with self._lock:
            return list(self._requests)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Yields the endpoint for `--otlp-endpoint`."""
        server = grpc.server(ThreadPoolExecutor(2), options=server_options())
        handlers = {"Export": grpc.unary_unary_rpc_method_handler(self.export)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


def _discard(pipe: Connection) -> None:
    with Receiver(keeps=False).serving() as endpoint:
        pipe.send(endpoint)
        pipe.recv()


@contextmanager
def discarding() -> Iterator[str]:
    """A receiver in a process of its own, which throws everything away; yields its endpoint."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_discard, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(10)
