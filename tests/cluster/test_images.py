"""The images of encoder and decoder without a Docker engine. It takes minutes and installs gigabytes of torch."""

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
def test_image_serves_with_only_its_own_packages(image, describe, free_ports, tmp_path):
    """With nothing else installed, the entry point passes the health check, answers a call and ends on SIGTERM."""
    clean, site = install(image, tmp_path)
    packages = {path.name for path in site.iterdir()}
    assert "torch" in packages and ("ray" in packages) == (image == "encoder")
    assert not unpinned(site, image, "torch")
    port = free_ports(2)
    with started(image, clean, port, tmp_path), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert describe(channel).model.model == "fsr-tiny"
