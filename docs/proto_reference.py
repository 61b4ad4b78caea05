"""The reference of the contracts, read from the proto files and their comments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

__all__ = ["grpc_api"]

_PROTOS = Path(__file__).parents[1] / "protos"
_ORDER = ("gateway", "types", "encoder", "decoder")
_MESSAGE, _ENUM, _SERVICE, _FIELD = 4, 5, 6, 2  # numbers of these parts in descriptor.proto

Comments = dict[tuple[int, ...], str]


def grpc_api() -> str:
    """Services, messages and enums of every file, the callers' first."""
    lines: list[str] = []
    for file in sorted(_files(), key=lambda file: _ORDER.index(Path(file.name).stem)):
        comments = {
            tuple(place.path): " ".join(place.leading_comments.split()) for place in file.source_code_info.location
        }
        lines += [f"## {file.name}", ""]
        for i, service in enumerate(file.service):
            lines += _service(service, (_SERVICE, i), comments)
        for i, message in enumerate(file.message_type):
            lines += _message(message, (_MESSAGE, i), comments)
        for i, enum in enumerate(file.enum_type):
            lines += _enum(enum, (_ENUM, i), comments)
    return "\n".join(lines).rstrip()


def _files() -> Iterator[FileDescriptorProto]:
    with tempfile.NamedTemporaryFile() as out:
        files = sorted(str(path) for path in _PROTOS.rglob("*.proto"))
        flags = ["--include_source_info", f"--descriptor_set_out={out.name}", f"-I{_PROTOS}"]
        if protoc.main(["protoc", *flags, f"-I{Path(protoc.__file__).parent / '_proto'}", *files]):
            raise ValueError("the proto files have a mistake; see above")
        yield from FileDescriptorSet.FromString(Path(out.name).read_bytes()).file


def _service(service: ServiceDescriptorProto, path: tuple[int, ...], comments: Comments) -> list[str]:
    lines = [f"### {service.name}", "", comments[path], ""]
    for i, method in enumerate(service.method):
        answer = ("stream of " if method.server_streaming else "") + _link(method.output_type)
        text = comments[(*path, 2, i)]
        lines += [f"- `{method.name}`: {_link(method.input_type)} to {answer}. {text}"]
    return [*lines, ""]


def _message(message: DescriptorProto, path: tuple[int, ...], comments: Comments) -> list[str]:
    lines = [f"### {message.name}", "", comments[path], ""]
    if message.field:
        lines += ["| number | field | type | |", "| --: | --- | --- | --- |"]
    for i, field in enumerate(message.field):
        choice = ""
        if field.HasField("oneof_index") and not field.proto3_optional:
            choice = f"One of `{message.oneof_decl[field.oneof_index].name}`. "
        text = comments[(*path, _FIELD, i)].replace("|", "\\|")
        lines += [f"| {field.number} | `{field.name}` | {_type(field, message)} | {choice}{text} |"]
    return [*lines, ""]


def _enum(enum: EnumDescriptorProto, path: tuple[int, ...], comments: Comments) -> list[str]:
    lines = [f"### {enum.name}", "", comments[path], "", "| number | value | |", "| --: | --- | --- |"]
    for i, value in enumerate(enum.value):
        lines += [f"| {value.number} | `{value.name}` | {comments[(*path, 2, i)]} |"]
    return [*lines, ""]


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = nested.field
            return f"map of {_type(key, nested)} to {_type(value, nested)}"
    name = _link(field.type_name) if field.type_name else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(type_name: str) -> str:
    """A type of ours links to its heading; others, of Google, stay names."""
    package, _, name = type_name.strip(".").rpartition(".")
    return f"[{name}](#{name.lower()})" if package == "fsr.v1" else f"`{type_name.strip('.')}`"
