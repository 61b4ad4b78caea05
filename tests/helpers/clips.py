"""Video files made of pictures."""

from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image

__all__ = ["write_clip"]


def write_clip(path: Path, pictures: Sequence[Image.Image], rate: int) -> Path:
    """An MP4 file with these frames, `rate` of them for each second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"qscale": "2"})
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path
