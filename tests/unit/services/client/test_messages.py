import pytest

from fsr.client import InvalidRequestError, Message, Video
from fsr.client.requests import chat_request
from fsr.v1 import types_pb2

PICTURE, URI = b"file", "data:image/png;base64,ZmlsZQ=="


def text(words):
    return types_pb2.Part(text=words)


def image(number):
    return types_pb2.Part(image=number)


def turns(request):
    return [
        (types_pb2.Role.Name(turn.role).removeprefix("ROLE_").lower(), list(turn.parts)) for turn in request.messages
    ]


def test_turns_with_pictures_and_videos_become_one_request(frames):
    request = chat_request(
        [
            Message("system", "Be short."),
            Message("user", "What is it?", PICTURE),
            Message("assistant", "A star."),
            Message("user", "And these?", [b"other", Video.from_folder(frames, 4)]),
        ],
        budget=16,
        max_tokens=9,
        options={"rho": 0.5},
    )
    assert turns(request) == [
        ("system", [text("Be short.")]),
        ("user", [image(0), text("What is it?")]),
        ("assistant", [text("A star.")]),
        ("user", [image(1), image(2), text("And these?")]),
    ]
    assert [picture.data for picture in request.images[:2]] == [PICTURE, b"other"]
    assert (len(request.images[2].frames), request.images[2].frames_per_second) == (3, 4)
    assert (request.budget.tokens, request.sampling.max_tokens, dict(request.method.options)) == (16, 9, {"rho": 0.5})


@pytest.mark.parametrize(
    "shown",
    [
        {"type": "image", "image": PICTURE},
        {"type": "image", "url": URI},
        {"type": "image_url", "image_url": {"url": URI, "detail": "high"}},
        {"type": "image_url", "image_url": URI},
    ],
)
def test_dictionaries_of_openai_and_transformers_are_turns_too(shown):
    content = [{"type": "text", "text": "Look:"}, shown, {"type": "text", "text": "What is it?"}]
    request = chat_request([{"role": "developer", "content": "Be short."}, {"role": "user", "content": content}])
    assert turns(request) == [
        ("system", [text("Be short.")]),
        ("user", [text("Look:"), image(0), text("What is it?")]),
    ]
    assert [picture.data for picture in request.images] == [PICTURE]


def test_video_in_a_dictionary_is_a_folder_frames_or_a_video(frames):
    videos = (frames, sorted(frames.glob("*.PNG")), Video.from_folder(frames))
    parts = [{"type": "video", "video": video} for video in videos]
    request = chat_request([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}])
    assert [len(video.frames) for video in request.images] == [3, 3, 3]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("Where?", r"messages: expected a list of turns: \[Message\("),
        (Message("user", "Where?"), r"messages: expected a list of turns"),
        ({"role": "user", "content": "Where?"}, r"messages: expected a list of turns"),
        (None, r"messages: expected a list of turns"),
        ([], r"messages: is empty; end it with a question"),
        (["Where?"], r"messages\[0\]: str is no turn; give a Message, or a dictionary"),
        ([Message("robot", "x")], r"messages\[0\]\.role: 'robot' is unknown; use system, user, assistant"),
        ([{"content": "x"}], r"messages\[0\]\.role: None is unknown"),
        ([Message("user", "x"), Message("user", None)], r"messages\[1\]\.text: expected a text, got NoneType"),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content: expected a text, got NoneType"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\]\.content: is no Unicode text"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\]: is no part of a turn; write {"),
        ([{"role": "user", "content": [{"type": "audio"}]}], r"messages\[0\]\.content\[0\]: is no part"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]\.content\[0\]\.text: expected a text"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\]\.content\[0\]: the image is missing"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/hostname"}}]}],
            r"messages\[0\]\.content\[0\]: is no URL; a path is {'type': 'image'",
        ),
        ([Message("user", "x", "/no/such")], r"messages\[0\]\.image: cannot read /no/such"),
        ([Message("user", "x", [b"x", "/no/such"])], r"messages\[0\]\.images\[1\]: cannot read /no/such"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "/no/such"}]}],
            r"messages\[0\]\.content\[0\]\.image: cannot read /no/such",
        ),
    ],
)
def test_wrong_turn_is_refused_with_its_place(messages, says):
    with pytest.raises(InvalidRequestError, match=f"^{says}"):
        chat_request(messages)


def test_unknown_argument_of_a_chat_is_a_type_error():
    with pytest.raises(TypeError, match=r"^bugdet: unknown argument; use .*budget"):
        chat_request([Message("user", "x")], bugdet=1)
