"""Errors as they travel: bounded, whatever text is in them."""

from urllib.parse import quote

import grpc
import pytest

from fsr.common.errors import InvalidRequest, shortened, stream_errors


@pytest.mark.parametrize("letter", ["x", "ü", "\U0001f600", "\0", "%"])
@pytest.mark.parametrize("length", [10, 601, 10_000_000])
def test_message_when_it_holds_a_long_name_keeps_field_and_remedy(letter, length):
    message = str(InvalidRequest(f"model: {letter * length} is unknown; ask for fsr-tiny"))
    assert message.startswith(f"model: {letter}") and message.endswith(f"{letter} is unknown; ask for fsr-tiny")
    assert len(quote(message)) < 2000  # as it is sent


def test_message_when_it_is_short_stays():
    assert shortened("ü" * 300) == "ü" * 300
    assert shortened("\ud800" * 700).startswith("?")


async def test_code_when_an_error_repeats_a_name_of_the_caller_is_still_the_error_s():
    """gRPC turns details beyond 16 KiB into RESOURCE_EXHAUSTED, which is worth a retry."""

    class Service:
        @stream_errors
        async def method(self, request, context):
            raise InvalidRequest(f"method.name: {request.decode()!r} is unknown")
            yield

    server = grpc.aio.server()
    handler = grpc.unary_stream_rpc_method_handler(Service().method)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Method": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream("/test/Method")(("ü" * 5000).encode())
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert (await call.details()).startswith("method.name: 'üü")
    await server.stop(None)
