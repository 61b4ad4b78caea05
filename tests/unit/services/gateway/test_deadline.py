import grpc
import pytest

from fsr.common.errors import InvalidRequest
from fsr.gateway.requests.deadline import Deadline


@pytest.mark.parametrize("longest", [1.0, 10.0, 120.0, 1200.0])
async def test_deadline_when_it_is_the_longest_allowed_survives_grpc_s_rounding(longest):
    async def remaining(request, context):
        return str(Deadline.after(context.time_remaining(), 9.0, longest).remaining()).encode()

    async def refused(request, context):
        with pytest.raises(InvalidRequest, match="more than"):
            Deadline.after(context.time_remaining(), 9.0, longest)
        return b""

    server = grpc.aio.server()
    handlers = {call.__name__: grpc.unary_unary_rpc_method_handler(call) for call in (remaining, refused)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert longest - 1 < float(await channel.unary_unary("/t/remaining")(b"", timeout=longest)) <= longest
        await channel.unary_unary("/t/refused")(b"", timeout=longest * 1.2 + 5)
    await server.stop(None)
