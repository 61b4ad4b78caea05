import pytest

from fsr.client import AsyncClient, Client, InvalidRequestError, Tls


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:20050", "https://gateway"])
async def test_url_as_address_is_refused(address):
    with pytest.raises(InvalidRequestError, match=r"gateway: .* write host:port"):
        AsyncClient(address)


@pytest.mark.parametrize("address", ["::1:20050", "fd00::1", "dns:///::1:20050", "name:http"])
async def test_address_when_its_port_is_not_clear_is_refused(address):
    with pytest.raises(InvalidRequestError, match=r"gateway: .*; write "):
        AsyncClient(address)


@pytest.mark.parametrize(
    "address", ["[::1]:9", "ipv6:[::1]:9,[::2]:9", "dns:///a.test:9", "gateway.test", "unix:/no/such"]
)
async def test_address_when_grpc_knows_its_form_is_taken(address):
    async with AsyncClient(address):
        pass


async def test_client_inside_an_event_loop_names_the_asynchronous_one():
    with pytest.raises(RuntimeError, match="use AsyncClient"):
        Client()


async def test_oversized_request_is_refused_before_it_is_sent():
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidRequestError, match=r"bytes exceed \d+; scale the pictures down"):
            await client.ask(b"x" * (65 * 2**20), "?")


def test_client_certificate_without_key_is_refused():
    with pytest.raises(InvalidRequestError, match="cert and key belong together"):
        Tls(cert="x")
    with pytest.raises(InvalidRequestError, match="cannot read ca"):
        Tls(ca="/no/such/ca").credentials()


async def test_api_key_that_no_header_can_carry_is_refused():
    with pytest.raises(InvalidRequestError, match="api_key"):
        AsyncClient(api_key="a\nb")
