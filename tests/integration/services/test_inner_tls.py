"""mTLS between real processes: a decoder and gateways, with certificates that are right, wrong, and renewed.

Hops to the encoder are in tests/cluster/test_encoder_tls.py, and both with each kind of certificate in
tests/unit/services/gateway/test_replica_tls.py.
"""

import asyncio
import http.client
import ssl
import subprocess
import sys
from contextlib import aclosing

import pytest

from fsr.client import AsyncClient, Client, Tls, UnavailableError
from fsr.common.health import check
from fsr.common.network.certificates import Pems, channel_credentials
from fsr.decoder.settings import DecoderSettings
from helpers.certificates import Authority, flags, gateway_options, options

QUESTION = "Hello red star"
NO_ENCODER = ("--encoders", "127.0.0.1:9", "--discovery-seconds", "0.2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def stranger(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def health_port(free_ports):
    return free_ports()


@pytest.fixture(scope="module")
def decoder(spawn, served_model, authority, health_port):
    files = flags(options(authority.issue("decoder", "127.0.0.1")))
    return spawn("decoder", *served_model, *files, "--health-port", str(health_port))


@pytest.fixture(scope="module")
def gateway(spawn, decoder, authority):
    """It has found the decoder."""
    files = flags(gateway_options(authority.issue("gateway", "gateway")))
    gateway = spawn("gateway", *NO_ENCODER, "--decoders", decoder.address, *files)
    gateway.wait_until_it_says('"event": "replica up"')
    return gateway


def test_question_is_answered_over_mtls(gateway):
    with Client(gateway.address) as client:
        assert client.ask([], QUESTION, timeout=300).token_ids


def test_health_is_asked_for_with_a_certificate_or_at_its_own_port(gateway, decoder, folder, health_port):
    assert check(f"127.0.0.1:{health_port}", timeout=60) is None
    assert "UNAVAILABLE" in check(decoder.address, timeout=60)
    mine = [str(folder / "gateway" / name) for name in ("ca.crt", "tls.crt", "tls.key")]
    for files, says in (
        (("--ca", mine[0], "--cert", mine[1], "--key", mine[2]), ""),
        (("--ca", mine[0]), "error: --ca, --cert, --key: give all three, or none\n"),
        (("--ca", mine[0], "--cert", mine[1], "--key", mine[1]), "error: --cert: "),
    ):
        command = [sys.executable, "-m", "fsr.common.health", decoder.address, "--timeout", "60", *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.stderr.startswith(says) and done.stderr.count("\n") == done.returncode == bool(says)


@pytest.mark.parametrize("fault", ["no TLS", "another authority", "decoder not trusted"])
def test_gateway_with_the_wrong_certificate_says_that_it_is_not_let_in(
    gateway, decoder, authority, stranger, spawn, fault
):
    files = []
    if fault == "another authority":
        files = flags(gateway_options(stranger.issue("other", "gateway", trusts=authority)))
    elif fault == "decoder not trusted":
        files = flags(gateway_options(authority.issue("wary", "gateway", trusts=stranger)))
    other = spawn("gateway", *NO_ENCODER, "--decoders", decoder.address, *files)
    other.wait_until_it_says(f'"address": "{decoder.address}", "reason": "failed to connect')
    assert '"event": "replica not reached"' in other.log.read_text()
    with pytest.raises(UnavailableError, match="no replica of any model answers yet"), Client(other.address) as client:
        client.ask([], QUESTION, timeout=60)


async def test_certificates_when_they_are_renewed_are_used_and_no_answer_changes(
    gateway, decoder, folder, authority, stranger
):
    """By those of another authority, on both sides, while an answer runs."""
    old = Pems(*((folder / "gateway" / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt")))
    long = {"max_tokens": 1000, "ignore_eos": True, "timeout": 600}
    async with AsyncClient(gateway.address) as client:
        undisturbed = await client.ask([], QUESTION, **long)
        async with aclosing(client.stream([], QUESTION, **long)) as stream:
            chunks = [await anext(stream)]
            for name, host in (("decoder", "127.0.0.1"), ("gateway", "gateway")):
                stranger.issue(name, host)
            for service in (gateway, decoder):
                await asyncio.to_thread(service.wait_until_it_says, "certificate read again")
            assert (await client.ask([], QUESTION, timeout=300)).token_ids
            chunks += [chunk async for chunk in stream]
    assert [token for chunk in chunks for token in chunk.token_ids] == list(undisturbed.token_ids)
    assert "UNAVAILABLE" in check(decoder.address, credentials=channel_credentials(old), timeout=60)


def test_decoder_when_its_certificate_has_expired_does_not_start(authority):
    old = flags(options(authority.issue("old", "127.0.0.1", expired=True)))
    with pytest.raises(SystemExit, match=r"^error: tls_cert: .* is of no use to a server \(certificate has expired\)"):
        DecoderSettings.load(old)


def test_gateway_when_its_own_certificate_is_renewed_shows_the_new_one(spawn, authority, stranger, free_ports):
    """By gRPC and by HTTP, and it asks its callers for certificates of the new authority."""
    mine, port = authority.issue("front", "127.0.0.1"), free_ports()
    gateway = spawn(
        "gateway", *NO_ENCODER, *flags(options(mine)), "--http-port", str(port), "--decoders", "127.0.0.1:9"
    )
    gateway.wait_until_it_says('"event": "serving"')
    before = authority.issue("caller", "caller", trusts=authority)
    assert accepted(gateway.address, port, before) == [True, True]
    after = stranger.issue("new-caller", "caller")
    assert accepted(gateway.address, port, after) == [False, False]
    stranger.issue("front", "127.0.0.1")
    assert accepted(gateway.address, port, after) == [True, True]
    assert accepted(gateway.address, port, before) == [False, False]


def accepted(address, http_port, folder):
    """Whether a gateway and a caller with the certificate in a folder accept each other, by gRPC and by HTTP."""
    cert, key, ca = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))
    results = []
    with Client(address, tls=Tls(ca=ca, cert=cert, key=key)) as client:
        try:
            results.append(client.models(timeout=60) == [])
        except UnavailableError:
            results.append(False)
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(cert, key)
    connection = http.client.HTTPSConnection("127.0.0.1", http_port, timeout=60, context=context)
    try:
        connection.request("GET", "/health")
        results.append(connection.getresponse().status == 200)
    except OSError:
        results.append(False)
    finally:
        connection.close()
    return results
