"""The Python SDK: asks a gateway about pictures and videos, or compresses their visual tokens.

with Client("127.0.0.1:20050") as client:
    answer = client.ask("scene.png", "What colour is the star?", budget=16)
    print(answer.text, answer.usage.visual_tokens_kept)
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
from fsr.client.media import Video
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
    "ImageTokens",
    "InvalidRequestError",
    "KeptTokens",
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
