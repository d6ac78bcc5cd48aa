"""Photos and textures with more than 8 bits a channel, brought to 8 or refused.

16 bits hold 0..65535, 8 bits 0..255:   y = round(255 x / 65535).

Used by `gsgen_lib.data.meshes` (textures) and `gsgen_lib.data.posed_files` (photos).
"""

from __future__ import annotations

import numpy as np


def to_8_bits(image):
    """A PIL image of at most 8 bits a channel: 16-bit grey is scaled by 255 / 65535 (Pillow's own conversion would
    clip it to white). Raises ValueError for the modes I and F, whose range nothing tells.

    >>> from PIL import Image
    >>> to_8_bits(Image.fromarray(np.full((1, 1), 30000, np.uint16))).getpixel((0, 0))
    117
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray(np.uint8(np.round(np.asarray(image).astype(np.float64) * (255 / 65535))))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no known range: save it with 8 or 16 bits")
    return image
