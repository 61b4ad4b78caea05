"""A real gateway in front of an encoder and a decoder that hold different checkpoints, until they do not."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fsr.client import Client, FailedPreconditionError
from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc, types_pb2
from helpers.waiting import until

GATEWAY = "fsr.v1.GatewayService"


class Halves(encoder_pb2_grpc.EncoderServiceServicer, decoder_pb2_grpc.DecoderServiceServicer):
    """Encoder and decoder at one address, without any model behind them."""

    encoders, decoders = "one", "other"

    def DescribeEncoder(self, request, context):
        return encoder_pb2.DescribeEncoderResponse(model=self._describe(self.encoders))

    def Encode(self, request, context):
        feature = types_pb2.Tensor(dtype=types_pb2.DTYPE_FP32, shape=[1, 1], data=bytes(4))
        image = types_pb2.CompressedImage(features=feature, index=[0], source_tokens=4)
        return encoder_pb2.EncodeResponse(fingerprint=self.encoders, images=[image])

    def DescribeDecoder(self, request, context):
        return decoder_pb2.DescribeDecoderResponse(model=self._describe(self.decoders))

    def Decode(self, request, context):
        yield decoder_pb2.DecodeResponse(text="yes", finish_reason=decoder_pb2.FINISH_REASON_STOP)

    @staticmethod
    def _describe(fingerprint):
        return types_pb2.ModelDescription(model="m", fingerprint=fingerprint)


@pytest.fixture(scope="module")
def halves():
    server, servicer = grpc.server(ThreadPoolExecutor(8)), Halves()
    encoder_pb2_grpc.add_EncoderServiceServicer_to_server(servicer, server)
    decoder_pb2_grpc.add_DecoderServiceServicer_to_server(servicer, server)
    checks = health.HealthServicer()
    checks.set("fsr.v1.DecoderService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None)


def test_different_checkpoints_are_told_and_not_healthy(halves, spawn):
    addresses = ("--encoders", halves.address, "--decoders", halves.address)
    gateway = spawn("gateway", *addresses, "--discovery-seconds", "0.1")
    with grpc.insecure_channel(gateway.address) as channel, Client(gateway.address) as client:
        grpc.channel_ready_future(channel).result(120)
        until(lambda: any(model.encoders for model in client.models(timeout=60)))
        (model,) = client.models()
        assert (model.encoders, model.decoders) == (1, 0)
        told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=GATEWAY))
        assert told.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert gateway.metric("fsr_replicas_ready", role="encoder") == 1
        assert gateway.metric("fsr_replicas_ready", role="decoder") == 0
        with pytest.raises(FailedPreconditionError, match="no decoder of m holds the encoder's checkpoint one; serve"):
            client.ask(b"x", "?", budget=1)
        halves.decoders = "one"
        gateway.wait_until_serving()
        assert client.models()[0].decoders == 1
        assert client.ask(b"x", "?", budget=1).text == "yes"
