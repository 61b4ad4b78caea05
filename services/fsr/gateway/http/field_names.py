"""Names of fields in messages of errors: the gateway and its replicas use those of the gRPC messages; a caller by HTTP
reads those of its own request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fsr.common.errors import ServiceError
from fsr.v1 import gateway_pb2

__all__ = ["FieldNames", "field_of"]

_FIELD = re.compile(r"([a-z_]+(?:\.[A-Za-z_]\w*|\[\d+\])*)(?=: )")
_IMAGE = re.compile(r"images\[(\d+)\](?:\.data)?")
_PART = re.compile(r"(messages\[\d+\])\.parts(\[\d+\])(?:\.\w+)?")
# By their beginnings; the first that fits.
_BEGINNINGS = (
    ("sampling.", ""),
    ("budget.spread", "fsr.spread"),
    ("budget", "fsr.budget"),
    ("method.options", "fsr.options"),
    ("method", "fsr.method"),
    ("deadline", "fsr.timeout"),
    ("wire_dtype", "fsr.wire_dtype"),
    ("resume.", "fsr.resume."),
)


def field_of(message: str) -> str | None:
    """The field that an error's message begins with, or None if it names none."""
    match = _FIELD.match(message)
    return match[1] if match else None


class FieldNames:
    """The names of one request. `images`: for each image of the gRPC message, where the HTTP request has it.

    `options`: names of its options of the method, which the encoder's errors name alone.
    """

    def __init__(self) -> None:
        self.images: list[str] = []
        self.options: set[str] = set()
        self._renamed: dict[str, str] = {}

    def rename(self, field: str, name: str) -> None:
        """The request has `field` of the gRPC message as `name`."""
        self._renamed[field] = name

    def http(self, field: str) -> str:
        """The name that the HTTP request has for a field of the gRPC message."""
        if field in self._renamed:
            return self._renamed[field]
        image = _IMAGE.match(field)
        if image and int(image[1]) < len(self.images):
            return self.images[int(image[1])] + field[image.end() :]
        part = _PART.fullmatch(field)
        if part:
            return f"{part[1]}.content{part[2]}"
        for beginning, name in _BEGINNINGS:
            if field.startswith(beginning):
                kept = field[len(beginning) :] if beginning in ("sampling.", "method.options", "resume.") else ""
                return name + kept
        is_option = field in self.options and field not in gateway_pb2.GenerateRequest.DESCRIPTOR.fields_by_name
        return f"fsr.options.{field}" if is_option else field

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within this block an error names the fields of the HTTP request."""
        try:
            yield
        except ServiceError as error:
            field = field_of(str(error))
            if field is None or self.http(field) == field:
                raise
            message = self.http(field) + str(error).removeprefix(field)
            raise type(error)(message, error.retry_after) from error
