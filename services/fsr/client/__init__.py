"""The Python SDK: asks a gateway about pictures and videos, or compresses their visual tokens.

with Client("127.0.0.1:20050") as client:
    answer = client.ask("scene.png", "What colour is the star?", budget=16)
    print(answer.text, answer.usage.visual_tokens_kept)

Text and pictures of others are safe as bytes, arrays and images. A path or a URL in a text is read by this process.
"""

from fsr.client.aio import AsyncClient
from fsr.client.channel import Tls
from fsr.client.errors import (
    AuthenticationError,
    ClientError,
    DeadlineExceeded,
    FailedPreconditionError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from fsr.client.kept_tokens import Explanation, ImageTokens, KeptTokens
from fsr.client.media import ImageSource, Video
from fsr.client.messages import Message
from fsr.client.requests import CompressOptions, GenerateOptions
from fsr.client.sync import Client
from fsr.client.types import Answer, Chunk, Compression, Route, TokenChoice, TokenLogprob, Usage

__all__ = [
    "Answer",
    "AsyncClient",
    "AuthenticationError",
    "Chunk",
    "Client",
    "ClientError",
    "CompressOptions",
    "Compression",
    "DeadlineExceeded",
    "Explanation",
    "FailedPreconditionError",
    "ForbiddenError",
    "GenerateOptions",
    "ImageSource",
    "ImageTokens",
    "InvalidRequestError",
    "KeptTokens",
    "Message",
    "NotFoundError",
    "OverloadedError",
    "Route",
    "ServerError",
    "Tls",
    "TokenChoice",
    "TokenLogprob",
    "UnavailableError",
    "Usage",
    "Video",
]
