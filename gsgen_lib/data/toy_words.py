"""The captions of the toys: a closed grammar, its parser, and the combinations kept for testing.

    caption  =  article [build] colour noun [ "with" colour2 pattern ]
    build    =  "tall" | "wide"
    pattern  =  "stripes" | "dots" | "checks" | "zigzags"

as in "a tall red mug with white stripes"; no pattern part means plain. The colour is that of the main
paint: the pullover of a snowman, the crown of a tree, hull and sail of a boat. A caption says what can be
seen from everywhere, and nothing about the hidden attributes. `parse_caption` inverts `make_caption`.

A model that has learned the words, rather than the objects, should draw a combination that it never
saw. So one in seven triples (family, colour, pattern) is held out of the training stream, by the rule

    (3 f + c + 2 p) mod 7 = 0        f, c, p = positions in NOUNS, COLORS, PATTERNS

which leaves every single value, and every pair of values, in the training stream.

Used by `gsgen_lib.data.toys`; the held-out triples serve the notebooks on text-conditional models.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from gsgen_lib.data.toy_paint import PALETTE

NOUNS = ("mug", "chair", "table", "lamp", "clock", "house", "tree",
         "car", "rocket", "boat", "robot", "snowman", "fish", "cat")
COLORS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "grey")
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzags")
PATTERN_COLORS = ("white", "black", "yellow", "red", "blue")
BUILDS = ("regular", "tall", "wide")
VOCABULARY = tuple(sorted({"a", "an", "with", *NOUNS, *COLORS, *PATTERN_COLORS, *PATTERNS[1:], *BUILDS[1:]}))
SPLITS = ("train", "test", "all")


@cache
def pattern_colors(color: str) -> tuple[str, ...]:
    """The pattern colours that stand out on a main colour (at least 110 apart in sRGB 0-255).

    >>> pattern_colors("yellow")
    ('white', 'black', 'red', 'blue')
    """
    base = np.array(PALETTE[color], dtype=float)
    return tuple(c for c in PATTERN_COLORS if np.linalg.norm(base - PALETTE[c]) >= 110)


def make_caption(family: str, attributes: dict) -> str:
    """The caption of a toy from its family and the attributes color, pattern, pattern_color, build.

    >>> make_caption("mug", dict(color="orange", pattern="stripes", pattern_color="white", build="regular"))
    'an orange mug with white stripes'
    """
    words = [attributes["build"]] if attributes["build"] != "regular" else []
    words += [attributes["color"], family]
    if attributes["pattern"] != "plain":
        words += ["with", attributes["pattern_color"], attributes["pattern"]]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def parse_caption(caption: str) -> tuple[str, dict]:
    """(family, attributes) of a caption; the inverse of `make_caption`.

    Raises ValueError naming the word at which the caption leaves the grammar.

    >>> parse_caption("a tall red mug with white stripes")
    ('mug', {'color': 'red', 'pattern': 'stripes', 'pattern_color': 'white', 'build': 'tall'})
    """
    words = caption.split()

    def take(allowed, what):
        if not words or words[0] not in allowed:
            got = repr(words[0]) if words else "the end"
            raise ValueError(f"caption {caption!r}: wanted {what} ({', '.join(allowed)}), got {got}")
        return words.pop(0)

    article = take(("a", "an"), "an article")
    if words and article != ("an" if words[0][0] in "aeiou" else "a"):
        raise ValueError(f"caption {caption!r}: {article!r} does not go with {words[0]!r}")
    found = {"color": None, "pattern": "plain", "pattern_color": None, "build": "regular"}
    if words and words[0] in BUILDS[1:]:
        found["build"] = words.pop(0)
    found["color"] = take(COLORS, "a colour")
    family = take(NOUNS, "a noun")
    if words:
        take(("with",), "'with'")
        found["pattern_color"] = take(pattern_colors(found["color"]), f"a colour that stands out on {found['color']}")
        found["pattern"] = take(PATTERNS[1:], "a pattern")
    if words:
        raise ValueError(f"caption {caption!r}: wanted the end, got {' '.join(words)!r}")
    return family, found


@cache
def combinations(split: str = "all") -> tuple[tuple[str, str, str], ...]:
    """All triples (family, colour, pattern) of a split: "train", "test" (the held-out ones) or "all".

    >>> len(combinations("train")), len(combinations("test")), len(combinations("all"))
    (600, 100, 700)
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, wanted one of {SPLITS}")
    return tuple(
        (family, color, pattern)
        for f, family in enumerate(NOUNS) for c, color in enumerate(COLORS) for p, pattern in enumerate(PATTERNS)
        if split == "all" or ((3 * f + c + 2 * p) % 7 == 0) == (split == "test")
    )


def heldout_combinations() -> tuple[tuple[str, str, str], ...]:
    """The triples (family, colour, pattern) that the training stream never contains.

    >>> ("mug", "red", "plain") in heldout_combinations()
    True
    """
    return combinations("test")
