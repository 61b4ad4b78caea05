"""The pictures and videos of a request: files in data URIs, and pictures by http(s) URL."""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Sequence

from fsr.common.errors import InvalidRequest
from fsr.gateway.http.pictures.remote import RemotePictures
from fsr.gateway.http.schemas.requests import VideoPart, VideoUrl, VisualPart
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from fsr.v1 import types_pb2

__all__ = ["Pictures"]

_MEDIA_TYPES = ("image/jpeg", "image/jpg", "image/png", "image/webp")
_HEADER = re.compile(r"data:([^;,]*)((?:;[^;,]*)*)", re.IGNORECASE)  # up to the comma
_REMOTE = re.compile(r"https?:", re.IGNORECASE)
_SLICE = 2**18  # characters of base64, a multiple of 4, so that each slice has whole bytes
_LONGEST_HEADER = 200  # characters; a media type with parameters has far fewer
_EXAMPLE = "write data:image/png;base64,... with the file in base64"
_FRAMES = "send its frames: {'frames': ['data:image/jpeg;base64,...', ...], 'fps': 2}"


class Pictures:
    """Gets the files behind the URLs of a request's parts."""

    def __init__(self, settings: GatewaySettings, remote: RemotePictures) -> None:
        self._settings, self._remote = settings, remote

    async def images(self, parts: Sequence[tuple[VisualPart, str]], deadline: Deadline) -> list[types_pb2.Image]:
        """The pictures and videos of these parts, each with its field in the request. Files that come with the request
        are read before any is fetched.

        Raises InvalidRequest, which names the field, and Expired. Does not get any file if there are too many.
        """
        most = self._settings.max_images
        if len(parts) > most:
            raise InvalidRequest(f"{parts[most][1]}: is image number {most + 1}, one more than {most}; send fewer")
        images, urls = {}, {}
        for part, field in parts:
            if isinstance(part, VideoPart):
                images[field] = await self._video(part.video_url, field)
            elif _REMOTE.match(part.image_url.url):
                urls[field] = part.image_url.url
            else:
                images[field] = types_pb2.Image(data=await self._file(part.image_url.url, field))
        for field, file in (await self._remote.fetch(urls, deadline)).items():
            images[field] = types_pb2.Image(data=file)
        return [images[field] for _, field in parts]

    async def _file(self, uri: str, field: str) -> bytes:
        data = _base64_in(uri, field, self._settings.max_image_bytes)
        try:
            return await _decoded(data)
        except ValueError as error:  # binascii.Error is one
            remedy = "encode the whole file, without line breaks"
            raise InvalidRequest(f"{field}: is no base64 ({error}); {remedy}") from error

    async def _video(self, video: VideoUrl, field: str) -> types_pb2.Image:
        if (video.frames is None) == (video.url is None):
            raise InvalidRequest(f"{field}: takes either frames or url; {_FRAMES}")
        uris = _frames_in(video.url, f"{field}.url") if video.url is not None else video.frames or []
        if not uris:
            raise InvalidRequest(f"{field}.frames: is empty; send at least one frame")
        if len(uris) > self._settings.max_frames:
            raise InvalidRequest(
                f"{field}: its {len(uris)} frames are more than {self._settings.max_frames}; send every second one"
            )
        files = [await self._file(uri, f"{field}.frames[{k}]") for k, uri in enumerate(uris)]
        return types_pb2.Image(frames=files, frames_per_second=video.fps or 0.0)


def _frames_in(url: str, field: str) -> list[str]:
    """The frames in the one URL that vLLM takes, each as a data URI of its own. Raises InvalidRequest."""
    header, comma, _ = url[:_LONGEST_HEADER].partition(",")
    match = _HEADER.fullmatch(header)
    if not match or not comma:
        raise InvalidRequest(f"{field}: is no data URI, and no video is fetched by URL here; {_FRAMES}")
    if match[1].lower() != "video/jpeg":
        raise InvalidRequest(f"{field}: {match[1][:40]!r} is a video file, which is not decoded here; {_FRAMES}")
    return [f"data:image/jpeg{match[2]},{frame}" for frame in url[len(header) + 1 :].split(",")]


def _base64_in(url: str, field: str, max_bytes: int) -> str:
    """The data in a data URI (RFC 2397) of a picture. Its size is checked before it is decoded. What is in the file,
    the encoder checks.

    Raises InvalidRequest, which names `field`.
    """
    header, comma, _ = url[:_LONGEST_HEADER].partition(",")
    match = _HEADER.fullmatch(header)
    if not match or not comma:
        raise InvalidRequest(f"{field}: is no data URI; {_EXAMPLE}")
    media_type, parameters = match[1].lower(), match[2].lower().split(";")
    if parameters[-1].strip() != "base64":
        raise InvalidRequest(f"{field}: is a data URI without base64; {_EXAMPLE}")
    if media_type not in _MEDIA_TYPES:
        allowed = ", ".join(name for name in _MEDIA_TYPES if name != "image/jpg")
        raise InvalidRequest(f"{field}: {media_type[:40]!r} is not supported; send {allowed}")
    data = url[len(header) + 1 :]
    size = len(data) * 3 // 4 - data[-2:].count("=")
    if size > max_bytes:
        raise InvalidRequest(f"{field}: {size} bytes exceed {max_bytes}; scale it down")
    return data


async def _decoded(data: str) -> bytes:
    """The bytes of base64. Large pictures take a tenth of a second, so other requests get their turn between slices.

    Raises ValueError.
    """
    file = bytearray()
    for start in range(0, len(data), _SLICE):
        piece = data[start : start + _SLICE]
        if piece.endswith("=") and start + _SLICE < len(data):
            raise ValueError("Padding before the end")
        file += binascii.a2b_base64(piece, strict_mode=True)
        await asyncio.sleep(0)
    return bytes(file)
