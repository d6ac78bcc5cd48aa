"""Toys: textured, captioned objects without end, whose hidden side is random with known odds.

Real objects never come with the answer to "what might the back look like?". These do. A toy is

    family, visible attributes v, hidden attributes h,      p(v, h) = p(v) prod_k p(h_k)

and the hidden attributes (the colour of a back door, what a robot carries on its back) are drawn
independently of all that can be seen from the front. From a view from which the parts that depend
on h_k are out of sight the image says nothing about h_k, and the true posterior is the prior. In
general, the image x taken by a camera rules out exactly those values that would have shown:

    S_k = {values whose part is visible from the camera}
    p(h_k | x) = 1[h_k = truth]                 if the truth is in S_k
               = p(h_k) / Z over values not in S_k,  otherwise

("nothing on the back" has no part: it is told from "backpack" where the backpack would be seen.)
Whether a part is visible is found by rendering it white on a black toy: same camera, same rays.

With this, a generative model can be graded exactly: do its samples of the back come in the true
proportions, and do they stop varying when the camera sees the back?

Shapes are in `toy_parts`, `toy_things`, `toy_movers`; captions and held-out combinations in
`toy_words`. First seen in notebook 02; graded against in the notebooks on generative models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from gsgen_lib.data import toy_movers, toy_things
from gsgen_lib.data.meshes import Material, Mesh, normalise
from gsgen_lib.data.toy_paint import pattern_texture
from gsgen_lib.data.toy_parts import Family, Parts
from gsgen_lib.data.toy_words import (
    BUILDS,
    COLORS,
    PATTERNS,
    combinations,
    heldout_combinations,
    make_caption,
    parse_caption,
    pattern_colors,
)

__all__ = ["FAMILIES", "Toy", "heldout_combinations", "make_toy", "parse_caption", "sample_attributes", "sample_toy"]

FAMILIES: dict[str, Family] = {
    "mug": toy_things.MUG, "chair": toy_things.CHAIR, "table": toy_things.TABLE, "lamp": toy_things.LAMP,
    "clock": toy_things.CLOCK, "house": toy_things.HOUSE, "tree": toy_things.TREE,
    "car": toy_movers.CAR, "rocket": toy_movers.ROCKET, "boat": toy_movers.BOAT, "robot": toy_movers.ROBOT,
    "snowman": toy_movers.SNOWMAN, "fish": toy_movers.FISH, "cat": toy_movers.CAT,
}
STRETCH = {"regular": (1.0, 1.0), "tall": (1.25, 0.88), "wide": (0.85, 1.2)}  # height, width


@dataclass(frozen=True)
class Toy:
    """One toy: its family, its attributes (plain dict, hidden ones included) and its geometry.

    `mesh` is normalised, front towards +z; `part_ids` (F,) int32 says which of `part_names` a
    triangle belongs to. Faces of the part "front" lie on the front only.

    >>> toy = sample_toy(np.random.default_rng(0), "robot", color="teal", pattern="plain", on_the_back="key")
    >>> toy.caption.endswith("teal robot"), toy.hidden["on_the_back"]
    (True, 'key')
    """

    family: str
    attributes: dict
    mesh: Mesh
    part_ids: np.ndarray
    part_names: list[str]

    @cached_property
    def caption(self) -> str:
        """What can be seen from everywhere, in the closed grammar of `toy_words`."""
        return make_caption(self.family, self.attributes)

    @property
    def odds(self) -> dict:
        """The prior of every hidden attribute: name -> {value: probability}."""
        return {name: dict(table) for name, table in FAMILIES[self.family].hidden.items()}

    @property
    def hidden(self) -> dict:
        """The hidden attributes and their true values."""
        return {name: self.attributes[name] for name in FAMILIES[self.family].hidden}

    @property
    def visible(self) -> dict:
        """All other attributes."""
        return {name: value for name, value in self.attributes.items() if name not in self.odds}

    def with_attributes(self, **changed) -> Toy:
        """The same toy but for the given attributes.

        >>> toy = sample_toy(np.random.default_rng(0), "house")
        >>> toy.with_attributes(back_door="blue").hidden["back_door"]
        'blue'
        """
        return make_toy(self.family, {**self.attributes, **changed})

    def posterior(self, view, size: int = 64, supersample: int = 2) -> dict:
        """p(hidden attribute | image of this toy from `view`): name -> {value: probability}.

        The visible attributes are taken as known (a value of h may show or not depending on them).
        view: (azimuth, elevation) in degrees for the standard data camera with size x size pixels,
        or a `Cameras` of one view. Exact for the image that `render_mesh` makes with this camera
        and this supersampling. Raises ValueError for more than one view.

        >>> toy = sample_toy(np.random.default_rng(0), "house", back_window="dark")
        >>> toy.posterior((0, 15))["back_window"], toy.posterior((180, 15))["back_window"]
        ({'lit': 0.6, 'dark': 0.4}, {'lit': 0.0, 'dark': 1.0})
        """
        camera = _one_camera(view, size)
        result = {}
        for name, odds in self.odds.items():
            # the shape is all that matters for visibility: values that only differ in colour share one answer
            answers, shown = {}, set()
            for value in odds:
                toy = self.with_attributes(**{name: value})
                mine = toy._faces_of(name)
                shape = toy.mesh.vertices[toy.mesh.faces[mine]].tobytes()
                if shape not in answers:
                    answers[shape] = toy._sees(mine, camera, supersample)
                if answers[shape]:
                    shown.add(value)
            truth = self.attributes[name]
            possible = {truth} if truth in shown else set(odds) - shown
            total = sum(odds[value] for value in possible) if shown else 1.0
            result[name] = {value: p / total if value in possible else 0.0 for value, p in odds.items()}
        return result

    def visible_from(self, part: str, view, size: int = 64, supersample: int = 2) -> bool:
        """Whether any ray of the camera meets the named part first.

        >>> toy = sample_toy(np.random.default_rng(0), "cat")
        >>> toy.visible_from("front", (0, 15)), toy.visible_from("front", (180, 15))
        (True, False)
        """
        if part not in self.part_names and part not in self.odds:
            raise ValueError(f"part: got {part!r}, wanted one of {self.part_names}")
        return self._sees(self._faces_of(part), _one_camera(view, size), supersample)

    def _faces_of(self, part: str) -> np.ndarray:
        """(F,) bool; nothing if the toy has no such part."""
        return self.part_ids == (self.part_names.index(part) if part in self.part_names else -1)

    def _sees(self, faces: np.ndarray, camera, supersample: int) -> bool:
        from gsgen_lib.data.raycast import render_mesh

        if not faces.any():
            return False
        black, white = Material((0, 0, 0, 1)), Material((1, 1, 1, 1))
        marked = replace(self.mesh, material_ids=faces.astype(np.int32), materials=[black, white])
        return bool(render_mesh(marked, camera, supersample).rgba[..., :3].max() > 0)


def make_toy(family: str, attributes: dict) -> Toy:
    """Build a toy from all of its attributes (as `Toy.attributes` holds them). No randomness.

    Raises ValueError naming an attribute that is missing, unknown or out of range.

    >>> toy = sample_toy(np.random.default_rng(0))
    >>> bool((make_toy(toy.family, toy.attributes).mesh.vertices == toy.mesh.vertices).all())
    True
    """
    kind = _get_family(family)
    wanted = {"color", "pattern", "pattern_color", "build", *kind.proportions, *kind.variants, *kind.hidden}
    if set(attributes) != wanted:
        raise ValueError(f"attributes of a {family}: missing {sorted(wanted - set(attributes))}, "
                         f"unknown {sorted(set(attributes) - wanted)}")
    _check(family, attributes)
    tall, wide = STRETCH[attributes["build"]]
    main = pattern_texture(attributes["color"], attributes["pattern"], attributes["pattern_color"])
    parts = Parts()
    kind.build(parts, {**attributes, "tall": tall, "wide": wide}, main)
    mesh, part_ids, part_names = parts.mesh()
    return Toy(family, dict(attributes), normalise(mesh), part_ids, part_names)


def sample_toy(generator: np.random.Generator, family: str | None = None, split: str = "train", **fixed) -> Toy:
    """Draw a toy; arguments as in `sample_attributes`.

    >>> sample_toy(np.random.default_rng(1), "boat", color="blue", pattern="stripes", build="wide").caption
    'a wide blue boat with black stripes'
    """
    return make_toy(*sample_attributes(generator, family, split, **fixed))


def sample_attributes(generator: np.random.Generator, family: str | None = None, split: str = "train",
                      **fixed) -> tuple[str, dict]:
    """Draw (family, attributes) of a toy. `family` and any attribute may be fixed; all else is random.

    split "train" never gives a held-out (family, color, pattern), "test" only those, "all" any.
    Hidden attributes are drawn with the odds of FAMILIES[family].hidden, independently of the rest.
    Raises ValueError for unknown names or values, or if what is fixed does not occur in the split.

    >>> sample_attributes(np.random.default_rng(0), "clock", color="red")[1]["back_cover"]
    'purple'
    """
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator: wanted np.random.default_rng(seed), got a {type(generator).__name__}")
    if family is not None:
        _get_family(family)
    wish = {name: fixed.get(name) for name in ("color", "pattern", "pattern_color")}
    triples = _allowed(split, family, **wish, plain="pattern_color" in fixed and wish["pattern_color"] is None)
    if not triples:
        raise ValueError(f"split={split!r} holds no toy with family={family!r}, {wish}. Colours: {COLORS}; patterns: "
                         f"{PATTERNS}; held-out combinations are in split='test' or 'all', and a pattern colour must "
                         "stand out")
    family, color, pattern = triples[generator.integers(len(triples))]
    kind = FAMILIES[family]

    def choose(values):
        return values[int(generator.integers(len(values)))]

    drawn = {"color": color, "pattern": pattern}
    second = choose(pattern_colors(color))
    drawn["pattern_color"] = None if pattern == "plain" else second
    drawn["build"] = choose(BUILDS)
    drawn.update({name: float(generator.uniform(*limits)) for name, limits in kind.proportions.items()})
    drawn.update({name: choose(values) for name, values in kind.variants.items()})
    drawn.update({name: str(generator.choice(list(odds), p=list(odds.values()))) for name, odds in kind.hidden.items()})
    unknown = sorted(set(fixed) - set(drawn))
    if unknown:
        raise ValueError(f"a {family} has no attribute {unknown[0]!r}; it has {', '.join(drawn)}")
    attributes = {**drawn, **fixed}
    _check(family, attributes)
    return family, attributes


@lru_cache(maxsize=512)
def _allowed(split, family, color, pattern, pattern_color, plain) -> list[tuple[str, str, str]]:
    """The triples of a split that agree with what is fixed (None: not fixed; plain: no pattern)."""
    return [
        t for t in combinations(split)
        if all(wish in (None, got) for wish, got in zip((family, color, pattern), t, strict=True))
        and pattern_color in (None, *pattern_colors(t[1]))
        and not (plain and t[2] != "plain") and not (pattern_color and t[2] == "plain")
    ]


def _get_family(family: str) -> Family:
    if family not in FAMILIES:
        raise ValueError(f"family: got {family!r}, wanted one of {', '.join(FAMILIES)}")
    return FAMILIES[family]


def _check(family: str, attributes: dict) -> None:
    kind = FAMILIES[family]
    choices = {"color": COLORS, "pattern": PATTERNS, "build": BUILDS, **kind.variants, **kind.hidden}
    for name, values in choices.items():
        if attributes[name] not in values:
            raise ValueError(f"{name} of a {family}: got {attributes[name]!r}, wanted one of {tuple(values)}")
    for name, (low, high) in kind.proportions.items():
        if not low <= attributes[name] <= high:
            raise ValueError(f"{name} of a {family}: got {attributes[name]!r}, wanted a number in [{low}, {high}]")
    allowed = (None,) if attributes["pattern"] == "plain" else pattern_colors(attributes["color"])
    if attributes["pattern_color"] not in allowed:
        raise ValueError(f"pattern_color on {attributes['pattern']} {attributes['color']}: got "
                         f"{attributes['pattern_color']!r}, wanted one of {allowed}")


def _one_camera(view, size: int):
    from gsgen_lib.scene.cameras import Cameras

    if isinstance(view, Cameras):
        if view.viewmats.ndim != 3 or len(view) != 1:
            raise ValueError(f"view: wanted Cameras of one view, got viewmats {tuple(view.viewmats.shape)}")
        return view
    azimuth, elevation = view
    return Cameras.orbit(1, elevation=float(elevation), azimuth=[float(azimuth)], width=size, height=size)
