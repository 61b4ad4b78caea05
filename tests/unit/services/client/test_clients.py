"""Clients by themselves: addresses, keys, event loops, ends, forks. Nothing listens on their port."""

import asyncio
import gc
import math
import re
import socket
import subprocess
import sys
import threading

import pytest

from fsr.client import AsyncClient, Client, DeadlineExceeded, InvalidRequestError, Message, Tls, UnavailableError
from fsr.v1 import gateway_pb2

NOBODY = "127.0.0.1:1"
ANSWERS_NOBODY = r"^gateway: no connection .*; start it with `fsr up`, or check that the address is its host:port"


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


@pytest.mark.parametrize("address", ["gateway.test", "10.0.0.1:20050", "dns:///gateway.test:9", "[2001:db8::1]:9"])
async def test_key_when_it_goes_to_another_machine_in_plain_text_is_a_warning(address):
    says = rf"^api_key: goes to {re.escape(address)} in plain text; use tls=Tls\(...\), or insecure=True"
    with pytest.warns(UserWarning, match=says):
        AsyncClient(address, api_key="k")
    for options in ({}, {"api_key": "k", "insecure": True}, {"api_key": "k", "tls": Tls()}):
        AsyncClient(address, **options)  # warnings are errors here


@pytest.mark.parametrize("address", ["127.0.0.1:9", "localhost:9", "[::1]:9", "unix:/no/such"])
async def test_key_when_it_stays_on_this_machine_is_no_warning(address):
    AsyncClient(address, api_key="k")


async def test_client_inside_an_event_loop_names_the_asynchronous_one():
    with pytest.raises(RuntimeError, match="use AsyncClient"):
        Client()


def test_client_taken_into_an_event_loop_names_the_asynchronous_one():
    async def use():
        for call in (client.models, lambda: client.ask(b"x", "?"), lambda: next(client.stream(b"x", "?"))):
            with pytest.raises(RuntimeError, match="use AsyncClient"):
                call()

    with Client(NOBODY) as client:
        asyncio.run(use())


async def test_oversized_request_is_refused_before_it_is_sent():
    async with AsyncClient(NOBODY) as client:
        with pytest.raises(InvalidRequestError, match=r"bytes exceed \d+; scale the pictures down"):
            await client.ask(b"x" * (65 * 2**20), "?")


def test_client_certificate_without_key_is_refused():
    with pytest.raises(InvalidRequestError, match="cert and key belong together"):
        Tls(cert="x")
    with pytest.raises(InvalidRequestError, match="cannot read ca"):
        AsyncClient(tls=Tls(ca="/no/such/ca"))


async def test_api_key_that_no_header_can_carry_is_refused():
    with pytest.raises(InvalidRequestError, match="api_key"):
        AsyncClient(api_key="a\nb")


def test_client_made_outside_an_event_loop_works_in_one_after_another():
    client = AsyncClient(NOBODY)
    for _ in range(2):
        with pytest.raises(UnavailableError, match=ANSWERS_NOBODY):
            asyncio.run(client.ask(b"x", "?", timeout=60))
    asyncio.run(client.close())
    gc.collect()  # of the first loop's channel, which nobody closed


async def test_client_in_two_event_loops_at_a_time_is_refused():
    async with AsyncClient(NOBODY) as client:
        with pytest.raises(UnavailableError):
            await client.models()
        with pytest.raises(RuntimeError, match="another event loop uses it; make a client for each loop"):
            await asyncio.to_thread(asyncio.run, client.models())


async def test_asynchronous_client_is_closed_more_than_once():
    client = AsyncClient(NOBODY)
    with pytest.raises(UnavailableError):
        await client.models()
    for _ in range(2):
        await client.close()
    with pytest.raises(RuntimeError, match="client: is closed; make another one"):
        await client.models()
    await AsyncClient(NOBODY).close()


def test_client_is_closed_more_than_once_and_under_a_stream():
    client = Client(NOBODY)
    stream = client.stream(b"x", "?")
    with pytest.raises(UnavailableError):
        client.models()
    with client:
        client.close()
    client.close()
    for call in (client.models, lambda: next(stream), lambda: client.ask(b"x", "?")):
        with pytest.raises(RuntimeError, match="client: is closed; make another one"):
            call()
    Client(NOBODY).close()


def test_client_in_two_threads_at_a_time_is_refused():
    """The first call waits for a server that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent, Client(f"127.0.0.1:{silent.getsockname()[1]}") as client:
        failures = []

        def wait():
            with pytest.raises((DeadlineExceeded, UnavailableError)) as failed:
                client.models(timeout=60)
            failures.append(failed)

        thread = threading.Thread(target=wait)
        thread.start()
        with (
            silent.accept()[0],
            pytest.raises(RuntimeError, match="another thread is in a call of it; make a client for each thread"),
        ):
            client.models()
        thread.join()
        assert failures


@pytest.mark.parametrize("call", ["ask", "stream", "chat", "generate", "compress", "models"])
def test_every_call_when_nobody_listens_says_how_to_start(call):
    arguments = {"ask": (b"x", "?"), "stream": (b"x", "?"), "compress": (b"x", "?"), "models": ()}
    with Client(NOBODY) as client, pytest.raises(UnavailableError, match=ANSWERS_NOBODY):
        answer = getattr(client, call)(*arguments.get(call, ([Message("user", "?")],)))
        list(answer)


@pytest.mark.parametrize("timeout", [math.inf, -math.inf, math.nan, "5", True, 10**400])
@pytest.mark.parametrize("call", ["ask", "generate", "compress", "models"])
def test_timeout_that_is_no_number_of_seconds_is_refused(call, timeout):
    arguments = {"generate": ([Message("user", "?")],), "models": ()}.get(call, (b"x", "?"))
    says = r"^timeout: .* is no number of seconds; give a number such as 600, or None for the gateway's own"
    with Client(NOBODY) as client, pytest.raises(InvalidRequestError, match=says):
        list(getattr(client, call)(*arguments, timeout=timeout))


@pytest.mark.parametrize("timeout", [0, -1.5, 1e-9])
def test_timeout_that_has_passed_is_a_deadline_exceeded(timeout):
    with Client(NOBODY) as client, pytest.raises(DeadlineExceeded, match=r"^timeout: .* allow more time"):
        client.ask(b"x", "?", timeout=timeout)


@pytest.mark.parametrize("timeout", [None, 1e300, 10**30])
def test_long_timeout_and_none_reach_the_gateway(timeout):
    with Client(NOBODY) as client, pytest.raises(UnavailableError):
        client.ask(b"x", "?", timeout=timeout)


def test_argument_beside_a_request_that_is_built_is_a_type_error():
    with Client(NOBODY) as client, pytest.raises(TypeError, match=r"^budget: belongs into the request"):
        next(client.generate(gateway_pb2.GenerateRequest(), budget=3))


FORKED = """
import os, sys
from fsr.client import Client, UnavailableError

def models(client):
    try:
        client.models()
    except Exception as error:
        return f"{type(error).__name__} {error}"
"""


def forked(body):
    """What a script prints that forks; without the warning of newer versions that threads are not copied."""
    code = FORKED + body
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_forked_child_of_a_process_with_a_connection_is_told_what_to_do():
    lines = forked(f"""
client = Client("{NOBODY}")
models(client)
if os.fork() == 0:
    print(models(client), models(Client("{NOBODY}")), sep="\\n", flush=True)
    with client:
        pass
    client.close()
    os._exit(0)
assert os.wait()[1] == 0
print(models(client))
""")
    told = (
        r"RuntimeError client: gRPC hangs in a process forked from one that had called a gateway; start processes with "
    )
    assert [line.startswith(told) for line in lines] == [True, True, False]
    assert lines[2].startswith("UnavailableError")


def test_forked_child_of_a_process_without_a_connection_works():
    lines = forked(f"""
client = Client("{NOBODY}")
for _ in range(2):
    if os.fork() == 0:
        print(models(client), flush=True)
        client.close()
        os._exit(0)
    assert os.wait()[1] == 0
""")
    assert [line.split()[0] for line in lines] == ["UnavailableError"] * 2
