"""Processes in place of the services that `fsr up` starts.

As a script, `stand_ins.py encoder --port N`, it is a replica that is ready in well under a second: it describes a
model, which is all that a gateway asks before it says that the replica can be used.
"""

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent import futures

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2

WAITS = "import time; time.sleep(600)"
MODEL = types_pb2.ModelDescription(model="stand-in", fingerprint="same", feature_dim=8, context_length=128)


class StandIns:
    """Makes `fsr up` start other code in place of its services.

    `started` has, for each service, the command, environment and process of each start.
    """

    def __init__(self, monkeypatch) -> None:
        self.started: dict[str, list[tuple[list[str], dict[str, str], subprocess.Popen[bytes]]]] = {}
        self._patch, self._popen = monkeypatch, subprocess.Popen

    def use(self, code: dict[str, str], then: Callable[[], None] = lambda: None):
        """`code` of a service gets the service's arguments; "replica" is the script of this file, "real" the service.

        `then` is called after each start, before the process is held. Returns `started`.
        """

        def start(command, **options):
            if command[1] != "-m":
                return self._popen(command, **options)
            name = command[2].removeprefix("fsr.")
            given = code.get(name, WAITS)
            replica = [sys.executable, __file__, name, *command[3:]]
            instead = {"real": command, "replica": replica}.get(given, [sys.executable, "-c", given, *command[3:]])
            self.started.setdefault(name, []).append((command, options["env"], self._popen(instead, **options)))
            then()
            return self.started[name][-1][-1]

        self._patch.setattr("fsr.cli.stack.child.subprocess.Popen", start)
        return self.started

    def end(self) -> None:
        for process in self.processes():
            process.kill()
            process.wait()

    def processes(self, service: str | None = None) -> list[subprocess.Popen[bytes]]:
        """Of one service, or of all."""
        return [process for name, starts in self.started.items() if service in (None, name) for *_, process in starts]


class Encoder(encoder_pb2_grpc.EncoderServiceServicer):
    def DescribeEncoder(self, request, context):
        return encoder_pb2.DescribeEncoderResponse(model=MODEL, methods=["fsr"])


class Decoder(decoder_pb2_grpc.DecoderServiceServicer):
    def DescribeDecoder(self, request, context):
        return decoder_pb2.DescribeDecoderResponse(model=MODEL)


class Health(health_pb2_grpc.HealthServicer):
    def Check(self, request, context):
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def main() -> None:
    service, port = sys.argv[1], sys.argv[sys.argv.index("--port") + 1]
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    if service == "encoder":
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(Encoder(), server)
    else:
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(Decoder(), server)
        health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print(f"stand-in {service} at {port}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop(0)


if __name__ == "__main__":
    main()
