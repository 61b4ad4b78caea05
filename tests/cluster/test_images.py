"""The encoder's and decoder's images without a Docker engine: minutes, and gigabytes of torch."""

import grpc
import pytest

from fsr.v1 import decoder_pb2, decoder_pb2_grpc, encoder_pb2, encoder_pb2_grpc
from helpers.images import install, started, unpinned

pytestmark = pytest.mark.cluster


def describe_encoder(channel):
    return encoder_pb2_grpc.EncoderServiceStub(channel).DescribeEncoder(
        encoder_pb2.DescribeEncoderRequest(), timeout=20
    )


def describe_decoder(channel):
    return decoder_pb2_grpc.DecoderServiceStub(channel).DescribeDecoder(
        decoder_pb2.DescribeDecoderRequest(), timeout=20
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("image", "describe"), [("decoder", describe_decoder), ("encoder", describe_encoder)])
def test_image_starts_with_what_its_install_line_brings(image, describe, free_ports, tmp_path):
    """Its entry point, in an environment with nothing else, passes its health check, serves, and ends when told to."""
    clean, site = install(image, tmp_path)
    packages = {path.name for path in site.iterdir()}
    assert "torch" in packages and ("ray" in packages) == (image == "encoder")
    assert not unpinned(site)
    port = free_ports(2)
    with started(image, clean, port, tmp_path), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert describe(channel).model.model == "fsr-tiny"
