"""Malformed chat requests: deterministic, many kinds, none of which is a good request by chance."""

import copy
import json
import random
from collections.abc import Iterator

from helpers.chat import data_uri, messages

HUGE = 10**400
NAN, INFINITY = float("nan"), float("inf")
SURROGATE = "\ud800"
NUMBERS = (True, "3", [], {}, NAN, INFINITY, -INFINITY, HUGE, -HUGE, 1e308)
WHOLE = (*NUMBERS, 1.5, 2**31, 2**63, 2**64, -(2**63) - 1)
TEXTS = (3, True, [], {}, SURROGATE, [SURROGATE])
PART = ("messages", 0, "content", 0)
URL = (*PART, "image_url", "url")
# Where, and values that are wrong there.
WRONG = {
    ("model",): (*TEXTS, "missing", "m" * 10_000),
    ("messages",): (None, 3, "text", {}, [], [[]], [None], ["text"], [{}], [{"role": "user"}], [{"content": "a"}]),
    ("messages", 0): (None, 3, "text", [], {}),
    ("messages", 0, "role"): (None, *TEXTS, "", "User", "tool", "function", "system"),
    ("messages", 0, "content"): (None, 3, True, {}, "", " ", [], [[]], [None], ["text"], [{}], SURROGATE),
    PART: (None, 3, "text", [], {}, {"type": "text"}, {"text": "a"}, {"type": "image_url"}),
    (*PART, "type"): (None, *TEXTS, "", "image", "input_audio", "file", "text", "video_url"),
    (*PART, "image_url"): (None, *TEXTS, "data:image/png;base64,AA", {"uri": "a"}),
    URL: (
        None,
        *TEXTS,
        "",
        "a.png",
        "file:///etc/passwd",
        "ftp://example.org/a",
        "https://example.org/a.png",
        "http://169.254.169.254/latest",
        "data:",
        "data:,",
        "data:image/png,AA",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png;base64,@@@@",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA AA",
        "data:image/png;base64,ÄÄÄÄ",
        "data:image/png;base64,AAAA====",
        "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
        "data:text/html;base64,AAAA",
        "data:image/svg+xml;base64,AAAA",
        "data:" + "x" * 5000 + ";base64,AAAA",
        "data:image/png;base64," + "A" * 200_000,
    ),
    (*PART, "image_url", "detail"): (3, True, "fine", [], {}),
    ("messages", 0, "content", 1, "text"): (None, *TEXTS, "", "  \n", "a" * 70_000),
    ("max_tokens",): (*WHOLE, 0, -1),
    ("max_completion_tokens",): (*WHOLE, 0, -1),
    ("temperature",): (*NUMBERS, -1, -0.5, 10.5, 1e-300, -1e-300),
    ("top_p",): (*NUMBERS, -0.1, 0, 1.5, 1e-300),
    ("top_k",): (*WHOLE, -2),
    ("repetition_penalty",): (*NUMBERS, 0, -1, 11, 1e-300),
    ("seed",): (True, "3", [], {}, NAN, INFINITY, HUGE, -HUGE, 1.5, 2**64, -(2**63) - 1),
    ("stop",): (3, True, {}, [3], [[]], [None], "", [""], ["a"] * 17, "a" * 257, SURROGATE, [SURROGATE]),
    ("logprobs",): (3, "yes", [], {}),
    ("top_logprobs",): (*WHOLE, -1, 21, 3),
    ("ignore_eos",): (3, "yes", [], {}),
    ("stream",): (3, "yes", [], {}),
    ("stream_options",): (3, True, "yes", [], {"include": True}, {"include_usage": "yes"}),
    ("n",): (0, 2, -1, "1", True, [], HUGE),
    ("tools",): (3, "all", [{}], [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice",): ("required", {"type": "function", "function": {"name": "f"}}),
    ("response_format",): (3, "text", {"type": "json_object"}, {"type": "json_schema", "json_schema": {}}),
    ("presence_penalty",): (0.5, "0", [], NAN),
    ("modalities",): (["text", "audio"], ["audio"], "audio"),
    ("fsr",): (3, True, "auto", [], {"budgets": 3}),
    ("fsr", "budget"): (
        *(True, "3", "most", [], NAN, INFINITY, HUGE, -HUGE, 0, -1, 0.0, -0.5, 1.5, 2**31),
        {"min": 3},
        {"min_tokens": 5, "max_tokens": 3},
        {"min_tokens": -1},
        {"max_tokens": 2**40},
        {"radius": 3},
        {"radius": NAN},
        {"radius": "wide"},
    ),
    ("fsr", "method"): (*TEXTS, "missing", "m" * 10_000),
    ("fsr", "options"): (3, True, "rho", [], {"missing": 1}, {"rho": "a"}, {"rho": NAN}, {"rho": HUGE}, {"rho": [[]]}),
    ("fsr", "spread"): (*TEXTS, "wide"),
    ("fsr", "explain"): (3, "yes", [], {}),
    ("fsr", "timeout"): (*NUMBERS, 0, -1, 1e9),
}


def good_body(picture: bytes) -> dict:
    """The request that the others are made from."""
    return {
        "model": "fsr-tiny",
        "messages": messages("Is there a red star?", picture),
        "max_tokens": 2,
        "temperature": 0,
        "stream": False,
        "fsr": {"budget": 16, "method": "fsr", "options": {}, "spread": "even"},
    }


def wrong_values(body: dict) -> Iterator[bytes]:
    """Every wrong value at its place."""
    for path, values in WRONG.items():
        for value in values:
            yield json.dumps(_changed(body, path, value)).encode()


def unknown_names(body: dict, chance: random.Random) -> Iterator[bytes]:
    """A name that no object has, in each of the objects."""
    for path in ((), ("messages", 0), PART, (*PART, "image_url"), ("messages", 0, "content", 1), ("fsr",)):
        for name in ("wish", "", "__proto__", "a" * 5000, f"x{chance.random()}", "\u202e", "Model"):
            yield json.dumps(_changed(body, (*path, name), chance.choice([1, "a", None, [], {}]))).encode()


def broken_json(body: dict, chance: random.Random) -> Iterator[bytes]:
    """Cut, doubled, with other bytes in it, in another encoding; and JSON that is no object."""
    text = json.dumps(body).encode()
    yield from (
        b"",
        b" ",
        b"null",
        b"3",
        b'"text"',
        b"[]",
        b"[{}]",
        b"true",
        b"\x00",
        b"\xef\xbb\xbf",
        b"{",
        b"}",
        b"{}",
    )
    yield from (b"\xff\xfe" + text, text.decode().encode("utf-16"), text + text, text + b"x", text.replace(b'"', b"'"))
    for _ in range(150):
        yield text[: chance.randrange(1, len(text))]
    for _ in range(100):  # outside of strings nothing but blanks may be added
        at = chance.choice([i for i in range(len(text)) if text[i : i + 1] in b"{}[],"])
        yield text[:at] + chance.choice([b"x", b"\x00", b"\xff", b",,", b"}", b"]", b"//", b"'"]) + text[at:]
    for _ in range(30):  # no UTF-8 inside of a text
        yield text.replace(b"red star", chance.choice([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8", b"\x00", b"\n"]))


def deep_nesting(body: dict) -> Iterator[bytes]:
    for depth in (10, 100, 1000, 100_000):
        yield b"[" * depth
        yield b"[" * depth + b"]" * depth
        yield b'{"a":' * depth + b"1" + b"}" * depth
    text = json.dumps(_changed(body, ("fsr", "options"), {"rho": 1})).encode()
    for depth in (10, 100, 190, 1000, 10_000):
        yield text.replace(b'"rho": 1', b'"rho": ' + b"[" * depth + b"]" * depth)
        yield text.replace(b'"rho": 1', b'"rho": ' + b'{"a":' * depth + b"1" + b"}" * depth)


def duplicate_names(body: dict) -> Iterator[bytes]:
    """The last one counts, and it is wrong."""
    text = json.dumps(body)
    for name, value in (("model", 3), ("messages", []), ("fsr", 3), ("stream", "yes"), ("temperature", -1), ("n", 2)):
        yield f'{text[:-1]}, "{name}": {json.dumps(value)}}}'.encode()


def wrong_pictures(body: dict, picture: bytes, chance: random.Random, count: int) -> Iterator[bytes]:
    """Cut, with other bytes in its header, of noise, or huge by its header alone."""
    header = picture[:8]
    for number in range(count):
        if number % 4 == 0:
            file = picture[: chance.randrange(1, len(picture) * 3 // 4)]
        elif number % 4 == 1:
            file = header + chance.randbytes(chance.randrange(1, 400))
        elif number % 4 == 2:
            file = chance.randbytes(chance.randrange(1, 2000))
        else:
            file = picture[:16] + chance.randbytes(8) + picture[24:]  # width and height, and their checksum
        media_type = ("image/png", "image/jpeg", "image/webp")[number % 3]
        yield json.dumps(_changed(body, URL, data_uri(file, media_type))).encode()


def malformed(picture: bytes, count: int) -> list[bytes]:
    """So many bodies, the same ones each time."""
    body, chance = good_body(picture), random.Random(14)
    bodies = [*wrong_values(body), *unknown_names(body, chance), *broken_json(body, chance)]
    bodies += [*deep_nesting(body), *duplicate_names(body), *wrong_pictures(body, picture, chance, 150)]
    pairs = [(path, value) for path, values in WRONG.items() for value in values]
    while len(bodies) < count:
        (path, value), (other, another) = chance.sample(pairs, 2)
        if path[: len(other)] == other or other[: len(path)] == path:
            continue
        try:
            bodies.append(json.dumps(_changed(_changed(body, path, value), other, another)).encode())
        except (TypeError, KeyError, IndexError):  # the first change took the place of the second away
            continue
    chance.shuffle(bodies)
    return bodies[:count]


def _changed(body: dict, path: tuple, value: object) -> dict:
    """A copy with `value` at `path`."""
    body = copy.deepcopy(body)
    at = body
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return body
