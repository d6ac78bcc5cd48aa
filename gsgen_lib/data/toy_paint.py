"""Colours and patterns of the toys: a designed palette and small repeating textures.

A pattern is the sign of a distance: d(x, y) < 0 inside a stripe or a dot, > 0 outside. Painting
with clip(1/2 - d * pixels, 0, 1) gives edges that are one texel soft.

Used by `gsgen_lib.data.toys`, first seen in notebook 02.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

PALETTE = {  # sRGB; chosen to go together, and to stay apart from each other and from a white page
    "red": (214, 69, 65),
    "orange": (238, 138, 60),
    "yellow": (245, 203, 76),
    "green": (95, 165, 90),
    "teal": (58, 167, 160),
    "blue": (74, 124, 200),
    "purple": (138, 99, 184),
    "pink": (240, 150, 180),
    "brown": (154, 106, 69),
    "grey": (142, 151, 163),
    "white": (250, 246, 238),
    "black": (47, 52, 64),
    # materials of parts, never named in a caption
    "cream": (248, 232, 200),
    "wood": (190, 140, 92),
    "grass": (146, 190, 104),
    "glass": (172, 214, 232),
    "steel": (186, 194, 204),
    "gold": (232, 180, 60),
    "coffee": (96, 62, 44),
    "skin": (246, 196, 160),
}


@lru_cache(maxsize=512)
def pattern_texture(color: str, pattern: str = "plain", pattern_color: str | None = None) -> np.ndarray:
    """One tile of a pattern as (32, 32, 4) uint8 with smooth edges; (1, 1, 4) if plain.

    >>> pattern_texture("red", "dots", "white").shape
    (32, 32, 4)
    """
    base = np.array(PALETTE[color], dtype=np.float64)
    if pattern == "plain":
        return np.append(base, 255).astype(np.uint8)[None, None]
    y, x = (np.mgrid[:32, :32] + 0.5) / 32 - 0.5  # in [-0.5, 0.5]
    if pattern == "stripes":
        distance = np.abs(y) - 0.22
    elif pattern == "dots":
        distance = np.hypot(x, y) - 0.3
    elif pattern == "checks":
        to_edge = np.min([np.abs(x), np.abs(y), 0.5 - np.abs(x), 0.5 - np.abs(y)], axis=0)
        distance = -np.sign(x * y) * to_edge
    elif pattern == "zigzags":
        distance = np.abs(y - 0.6 * (np.abs(x) - 0.25)) - 0.17
    else:
        raise ValueError(f"pattern: got {pattern!r}, wanted plain, stripes, dots, checks or zigzags")
    cover = np.clip(0.5 - 32 * distance, 0, 1)[..., None]
    rgb = (1 - cover) * base + cover * np.array(PALETTE[pattern_color])
    return np.concatenate([np.round(rgb), np.full_like(cover, 255)], -1).astype(np.uint8)


@lru_cache(maxsize=8)
def picture(name: str) -> np.ndarray:
    """A small picture for a decal, (64, 64, 4) uint8: "smile" or "dial" (of a clock, ten past ten)."""
    y, x = 1 - 2 * (np.mgrid[:64, :64] + 0.5) / 64  # y up, in [-1, 1]
    x = -x
    if name == "smile":
        ink = np.minimum(np.hypot(np.abs(x) - 0.33, (y - 0.25) / 1.3) - 0.15,
                         np.maximum(np.abs(np.hypot(x, y - 0.05) - 0.55) - 0.09, y + 0.12))
        paper, pen = PALETTE["cream"], PALETTE["black"]
    else:
        angle = np.arctan2(x, y)
        nearest = np.round(angle / (np.pi / 6)) * np.pi / 6
        ink = np.hypot(x - 0.82 * np.sin(nearest), y - 0.82 * np.cos(nearest)) - 0.06
        for degrees, length, width in ((-55, 0.45, 0.1), (60, 0.65, 0.08)):
            s, c = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
            along = np.clip(x * s + y * c, 0, length)
            ink = np.minimum(ink, np.hypot(x - along * s, y - along * c) - width)
        paper, pen = PALETTE["white"], PALETTE["black"]
    cover = np.clip(0.5 - 32 * ink, 0, 1)[..., None]
    rgb = (1 - cover) * np.array(paper) + cover * np.array(pen)
    return np.concatenate([np.round(rgb), np.full_like(cover, 255)], -1).astype(np.uint8)
