"""Admission and the end of a replica, each with a process of its own."""

import signal
import socket
import threading
from contextlib import suppress

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fsr.v1 import decoder_pb2 as pb
from helpers.replicas import ENGINE, TINY, ids
from helpers.waiting import until

pytestmark = TINY
PER_TOKEN = 4 * 2 * 160 * 4  # layers, keys and values, width, fp32
LENGTH = 900  # tokens of an answer that others meet: as many as the model has places for, so that it lasts


def begun(replica, request, count):
    """Calls of this request, all begun at the same moment and none read yet."""
    return [replica.stub.Decode(request, timeout=300) for _ in range(count)]


def end(stream):
    """Ids, or the error."""
    try:
        return ids(stream)
    except grpc.RpcError as error:
        return error


def outcome(replica, request, timeout=300):
    """Ids, or the error, of a call that is alone."""
    return end(replica.stub.Decode(request, timeout=timeout))


def test_admission_by_kv_memory(start, asks):
    """Two fit, two wait, the rest is refused at once with a hint; who waited is answered like any other."""
    ask = asks["one"]
    need = -(-(len(ask.prompt.token_ids) + LENGTH) // 32) * 32 * PER_TOKEN
    # One block to spare: vLLM keeps it for itself.
    with start(
        "--kv-memory", str(2 * need + 32 * PER_TOKEN), "--max-waiting", "2", "--max-wait-seconds", "600"
    ) as replica:
        request = ask.with_(max_tokens=LENGTH, ignore_eos=True)
        streams = begun(replica, request, 6)
        full = {"running_requests": 2, "waiting_requests": 2}
        assert replica.settles(**full) == full
        outcomes = [end(stream) for stream in streams]
        answered = [one for one in outcomes if isinstance(one, list)]
        refused = [one for one in outcomes if not isinstance(one, list)]
        assert answered == [ask.generate(LENGTH)] * 4 and len(refused) == 2
        for error in refused:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "wait already" in error.details()
            assert int(dict(error.trailing_metadata())["retry-after-ms"]) > 0
        assert replica.metric('fsr_decoder_refused_total{reason="waiting"}') == 2

        # Who gives up while waiting leaves the line.
        streams = begun(replica, request, 2)
        for stream in streams:
            next(stream)
        assert outcome(replica, request, timeout=0.1).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert replica.settles(waiting_requests=0) == {"waiting_requests": 0}
        for stream in streams:
            stream.cancel()
        assert replica.settles(kv_reserved_bytes=0) == {"kv_reserved_bytes": 0}


def test_what_never_fits_into_the_kv_memory_is_refused(start, asks):
    with start("--kv-memory", str(512 * PER_TOKEN)) as replica:
        error = outcome(replica, asks["one"].with_(max_tokens=1_000))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        capacity = int(replica.metric("fsr_decoder_kv_capacity_bytes"))
        assert f"has {capacity} in all" in error.details() and "--kv-memory" in error.details()

        # Sizes are checked before the prompt is laid out: that the tensor has too few bytes does not matter any more.
        # An image that is shown several times counts as often.
        huge, often = asks["all"].with_(max_tokens=1), asks["all"].with_(max_tokens=1)
        huge.images[0].features.shape[0] = 5000
        often.images[0].features.data = b""
        often.messages[0].parts.extend([often.messages[0].parts[0]] * 7)
        for large in (huge, often):
            error = outcome(replica, large)
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "KV memory" in error.details()


def test_waiting_is_bounded_in_time(start, asks):
    with start("--max-running", "1", "--max-wait-seconds", "0.2") as replica:
        stream = replica.stub.Decode(asks["one"].with_(max_tokens=LENGTH, ignore_eos=True))
        next(stream)
        error = outcome(replica, asks["one"].with_(max_tokens=2))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "0.2 s" in error.details()
        assert "retry-after-ms" in dict(error.trailing_metadata())
        stream.cancel()


def test_draining_ends_what_runs_and_takes_nothing_new(start, asks):
    with start("--drain-seconds", "300") as replica:
        stream = replica.stub.Decode(asks["few"].with_(max_tokens=LENGTH, ignore_eos=True))
        first = next(stream)
        replica.process.send_signal(signal.SIGTERM)
        late = []
        while isinstance(late, list):
            late = outcome(replica, asks["few"].with_(max_tokens=1))
        assert late.code() == grpc.StatusCode.UNAVAILABLE and "shutting down" in late.details()
        with pytest.raises(grpc.RpcError) as caught:
            replica.stub.DescribeDecoder(pb.DescribeDecoderRequest())
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert ids([first, *stream]) == asks["few"].generate(LENGTH)
        assert replica.process.wait(180) == 0


@pytest.mark.skipif(ENGINE != "vllm", reason="only vLLM's engine is a process of its own; unit tests do the other")
def test_a_dead_engine_is_not_healthy(start, asks):
    with start() as replica:
        states = []
        watcher = health_pb2_grpc.HealthStub(replica.channel).Watch(
            health_pb2.HealthCheckRequest(service="fsr.v1.DecoderService")
        )

        def read():
            with suppress(grpc.RpcError):  # the test ends the channel
                states.extend(message.status for message in watcher)

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        stream = replica.stub.Decode(asks["one"].with_(max_tokens=LENGTH, ignore_eos=True))
        next(stream)
        for child in psutil.Process(replica.process.pid).children(recursive=True):
            child.kill()
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        until(lambda: health_pb2.HealthCheckResponse.NOT_SERVING in states)
        assert states[-1] == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            replica.stub.DescribeDecoder(pb.DescribeDecoderRequest())
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        watcher.cancel()
        reading.join()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--kv-memory", "nonsense", "--kv-memory"),
        ("--kv-memory", "100", "--kv-memory"),
        ("--model", "/nowhere", "--model"),
        ("--engine-options", '{"warp_speed": 9}', "--engine"),
    ],
)
def test_a_wrong_start_is_one_clear_line(start, option, value, says):
    with pytest.raises(RuntimeError, match=f"error: {says}"), start(option, value):
        pass


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_is_one_clear_line_before_a_model_is_loaded(start, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = (option, str(taken.getsockname()[1]), "--model", "/nowhere")
        with pytest.raises(RuntimeError, match=rf"error: {option}: .*in use") as caught, start(*options):
            pass
    assert "Traceback" not in str(caught.value)
