"""Pictures as the models see them: RGB, upright, transparent parts on white. It needs Pillow and NumPy alone.

Every part of the project that looks at a picture reads it here, so that encoder, explanation and plug-and-play see the
same pixels.
"""

from fsr_core.pictures.files import PictureFile, read_picture
from fsr_core.pictures.modes import to_rgb

__all__ = ["PictureFile", "read_picture", "to_rgb"]
