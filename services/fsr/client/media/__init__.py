"""Pictures and videos in every form that callers have, as files to send. What is a file already is sent as it is."""

from fsr.client.media.pictures import PictureSource, is_video_file, local_path, read_picture
from fsr.client.media.videos import Images, ImageSource, Video, image_messages, is_content

__all__ = [
    "ImageSource",
    "Images",
    "PictureSource",
    "Video",
    "image_messages",
    "is_content",
    "is_video_file",
    "local_path",
    "read_picture",
]
