"""Frames of video files. It needs the extra `video`: PyAV and Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

from fsr.client.errors import InvalidRequestError
from fsr.common.wire.transport import MESSAGE_BYTES

__all__ = ["frames_of"]

_QUALITY = 95  # of the JPEG files; nothing that a model sees gets lost
_SLACK = 5e-4  # seconds: some containers round times to a thousandth
_NO_OTHER_FILE = {"protocol_whitelist": "none"}  # a playlist could name files and URLs for FFmpeg to open
_COMMON_RATE = 25.0  # frames per second, where a file names neither times nor a rate


def frames_of(file: Any, name: str, frames_per_second: float) -> list[bytes]:
    """The frames that a video shows at the times 0, 1 / rate, 2 / rate, ..., upright, as JPEG files.

    Raises InvalidRequestError: an extra is missing, the file is no readable video, or its frames exceed a request.
    """
    try:
        import av
        from PIL import Image  # noqa: F401  PyAV makes images with it
    except ImportError as error:
        remedy = f"pip install 'fsr-gateway[video]', or: mkdir frames && ffmpeg -i {name} -vf fps=2 frames/%05d.png"
        raise InvalidRequestError(f"video: a video file is read with PyAV, which is not installed; {remedy}") from error
    frames: list[bytes] = []
    size, last, data = 0, None, b""
    try:
        with av.open(file, metadata_errors="ignore", options=_NO_OTHER_FILE) as container:
            for frame in _at_rate(container, frames_per_second):
                if frame is not last:
                    last, data = frame, _jpeg(frame)
                frames.append(data)
                size += len(data)
                if size > MESSAGE_BYTES:
                    seconds = f"after {len(frames) / frames_per_second:.0f} s"
                    remedy = "lower frames_per_second, or cut the video"
                    raise InvalidRequestError(f"video: the frames of {name} exceed a request {seconds}; {remedy}")
    except (av.FFmpegError, OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidRequestError(f"video: {name} is no readable video ({reason}); check the file") from error
    if not frames:
        raise InvalidRequestError(f"video: {name} holds no video; check the file")
    return frames


def _at_rate(container: Any, rate: float) -> Iterator[Any]:
    """For each time 0, 1 / rate, ... the frame that is shown then: the last one that has begun."""
    streams = container.streams.video
    if not streams:
        return
    streams[0].thread_type = "AUTO"
    shown, begin, tick = None, 0.0, 0
    for number, frame in enumerate(container.decode(streams[0])):
        time = frame.time
        if time is None:
            time = number / float(streams[0].average_rate or _COMMON_RATE)
        if shown is None:
            begin = time
        while shown is not None and tick / rate + _SLACK < time - begin:
            yield shown
            tick += 1
        shown, end = frame, time - begin
    if shown is not None:
        while tick / rate <= end + _SLACK:
            yield shown
            tick += 1


def _jpeg(frame: Any) -> bytes:
    image = frame.to_image()
    if frame.rotation:  # counterclockwise, as phones write it
        image = image.rotate(frame.rotation, expand=True)
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
