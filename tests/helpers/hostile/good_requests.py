"""A valid request for each rpc, which the hostile ones are made from. None of them asks for much work."""

import grpc

from fsr.v1 import decoder_pb2, encoder_pb2, encoder_pb2_grpc, gateway_pb2, types_pb2

__all__ = ["compress_request", "decode_request", "encode_request", "generate_request", "options_of_empty_values"]

QUESTION = "Is there a red star?"


def generate_request(picture: bytes, question: str = QUESTION, **sampling) -> gateway_pb2.GenerateRequest:
    return gateway_pb2.GenerateRequest(
        model="fsr-tiny",
        messages=[_system(), _turn(question, 1)],
        images=[types_pb2.Image(data=picture)],
        budget=types_pb2.Budget(tokens=16, spread=types_pb2.SPREAD_EVEN),
        method=_method(),
        sampling=types_pb2.Sampling(**{"max_tokens": 2} | sampling),
    )


def compress_request(*pictures: bytes, question: str = QUESTION) -> gateway_pb2.CompressRequest:
    return gateway_pb2.CompressRequest(
        model="fsr-tiny",
        images=[types_pb2.Image(data=picture) for picture in pictures],
        instruction=question,
        budget=types_pb2.Budget(tokens=16),
        method=_method(),
    )


def encode_request(*pictures: bytes, question: str = QUESTION) -> encoder_pb2.EncodeRequest:
    return encoder_pb2.EncodeRequest(
        request_id="hostile",
        images=[types_pb2.Image(data=picture) for picture in pictures],
        instruction=question,
        budget=types_pb2.Budget(tokens=16),
        method=_method(),
        timeout_seconds=60,
    )


def decode_request(encoder: str, picture: bytes) -> decoder_pb2.DecodeRequest:
    """With the tokens of a picture from the encoder at this address."""
    with grpc.insecure_channel(encoder) as channel:
        encoded = encoder_pb2_grpc.EncoderServiceStub(channel).Encode(encode_request(picture), timeout=60)
    return decoder_pb2.DecodeRequest(
        request_id="hostile",
        fingerprint=encoded.fingerprint,
        messages=[_system(), _turn(QUESTION, 1)],
        images=encoded.images,
        sampling=types_pb2.Sampling(max_tokens=2),
    )


def _system() -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_SYSTEM, parts=[types_pb2.Part(text="Be short.")])


def _turn(question: str, images: int) -> types_pb2.Message:
    shown = [types_pb2.Part(image=number) for number in range(images)]
    return types_pb2.Message(role=types_pb2.ROLE_USER, parts=[*shown, types_pb2.Part(text=question)])


def _method() -> types_pb2.Method:
    method = types_pb2.Method(name="fsr")
    method.options["rho"] = 0.7
    return method


def options_of_empty_values(request, mib: float):
    """A copy of a request whose method has an option that is a list of empty values, two bytes each."""
    copy = type(request)()
    copy.CopyFrom(request)
    values = types_pb2.Method().options.fields["alpha"].list_value
    values.MergeFromString(b"\x0a\0" * int(mib * 2**19))
    copy.method.options.fields["alpha"].list_value.CopyFrom(values)
    return copy
