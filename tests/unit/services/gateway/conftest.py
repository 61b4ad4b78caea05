import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.pipeline import Pipeline
from fsr.gateway.routing.pools import Pools
from fsr.gateway.telemetry.metrics import Metrics
from fsr.v1 import decoder_pb2_grpc, encoder_pb2_grpc


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def pipeline_of():
    """Makes the pipeline of a gateway in front of `replicas`, which answers as an encoder and as a decoder."""
    started = []

    async def start(replicas, **options):
        server, health = grpc.aio.server(), HealthServicer()
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(replicas, server)
        decoder_pb2_grpc.add_DecoderServiceServicer_to_server(replicas, server)
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        await health.set("fsr.v1.DecoderService", health_pb2.HealthCheckResponse.SERVING)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        settings, metrics = GatewaySettings(encoders=[address], decoders=[address], **options), Metrics()
        pools = Pools(settings, metrics)
        started.append((server, pools))
        await pools.refresh()
        return Pipeline(pools, metrics, settings)

    yield start
    for server, pools in started:
        await pools.close()
        await server.stop(None)
