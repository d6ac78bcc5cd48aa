"""Toys that stay where they are: mug, chair, table, lamp, clock, house, tree.

Each function adds the parts of one toy, in units where the toy is about 1 across and stands on
y = 0 with its front to +z. `a` holds the attributes; a["tall"] and a["wide"] stretch by the build.
A part named after a hidden attribute lies on the back; the part "front" marks the front, so that
one can count from how many sides a generated object shows a front. Hidden parts stay inside
the bounding box of the rest, so they do not change how the toy is scaled; where two values of a
hidden attribute share a shape, they share no colour on it, so that whoever sees any of it can tell.
The main paint shows from all sides and from above: a caption is true of every view.

The table of what varies stands below each function. Used by `gsgen_lib.data.toys`.
"""

from __future__ import annotations

import numpy as np

from gsgen_lib.data.toy_paint import picture
from gsgen_lib.data.toy_parts import (
    Family,
    box,
    circle,
    cylinder,
    decal,
    drape,
    ellipsoid,
    heart,
    lathe,
    lathe_surface,
    rectangle,
    ring,
    slab,
    star,
    tube,
)

SIDES = (-1, 1)
BACK = (0, 180, 0)  # turns something made for the front to the back


def mug(p, a, main):
    """A mug on a saucer, with a face and a handle on one side; hidden: the print on its back."""
    r, h = 0.34 * a["wide"], 0.72 * a["tall"] * a["height"]
    p.add(lathe([(0, -0.05), (0.8 * r, -0.05), (1.7 * r, 0.0), (1.7 * r, 0.03), (0.9 * r, -0.01)], 40), main, "saucer")
    wall = [(0, 0), (0.9 * r, 0), (r, 0.05), (r, h)]
    p.add(lathe(wall), main)
    rim = [(r, 0), (1.07 * r, 0), (1.07 * r, 0.03), (0.92 * r, 0.03), (0.9 * r, -0.3), (0, -0.3)]
    p.add(lathe(rim), "cream", "rim", at=(0, h, 0))
    p.add(cylinder(0.9 * r, 0.02), "coffee", "rim", at=(0, h - 0.1, 0))
    side = 1 if a["handle"] == "right" else -1
    t = np.linspace(-1.25, 1.25, 12)
    arc = np.stack([0.96 * r + 0.24 * (np.cos(t) - np.cos(t[0])), h * (0.5 + 0.28 * np.sin(t)), 0 * t], 1)
    p.add(tube(arc, 0.055), main, "handle", turn=(0, -90 + 75 * side, 0))
    p.add(drape(decal(circle(0.2), 4), lambda x, y: np.sqrt(r**2 - x**2) + 0.008), picture("smile"), "front",
          at=(0, 0.5 * h, 0))
    p.add(drape(decal(circle(0.21), 4), lambda x, y: np.sqrt(r**2 - x**2) + 0.008), "cream",
          at=(0, 0.5 * h, 0), turn=BACK)
    if a["back_print"] != "none":
        outline, color = (heart(0.15), "red") if a["back_print"] == "heart" else (star(0.17), "blue")
        p.add(drape(decal(outline, 4), lambda x, y: np.sqrt(r**2 - x**2) + 0.014), color, "back_print",
              at=(0, 0.5 * h, 0), turn=BACK)


MUG = Family(mug, {"height": (0.9, 1.12)}, {"handle": ("left", "right")},
             {"back_print": {"heart": 0.4, "star": 0.3, "none": 0.3}})


def chair(p, a, main):
    """A chair with four legs, seat and back rest; hidden: the panel on the back of the rest."""
    w, d, seat, top = 0.52 * a["wide"], 0.5, 0.42 * a["legs"], 0.55 * a["tall"] * a["back_height"]
    for x in SIDES:
        p.add(box(0.07, seat, 0.07), a["frame"], "legs", at=(x * (w / 2 - 0.035), seat / 2, d / 2 - 0.035))
        p.add(box(0.07, seat + top, 0.1), a["frame"], "legs", at=(x * (w / 2 - 0.035), (seat + top) / 2, -d / 2 + 0.05))
    p.add(box(w, 0.05, d), a["frame"], "seat", at=(0, seat, 0))
    p.add(box(w - 0.04, 0.08, d - 0.09, top=(0.94, 0.94)), main, "seat", at=(0, seat + 0.065, 0.045))
    rest = top - 0.14  # height of the back rest, above a gap
    middle = seat + top - rest / 2 - 0.02
    p.add(box(w - 0.14, rest, 0.05), main, "back_rest", at=(0, middle, -d / 2 + 0.06))
    p.add(decal(heart(0.4 * min(rest, w - 0.14))), "cream", "front", at=(0, middle, -d / 2 + 0.09))
    p.add(box(w - 0.2, rest - 0.08, 0.012), "cream", "back_rest", at=(0, middle, -d / 2 + 0.03))
    p.add(decal(rectangle(w - 0.25, rest - 0.13)), a["back_panel"], "back_panel",
          at=(0, middle, -d / 2 + 0.02), turn=BACK)
    p.add(box(w + 0.02, 0.05, 0.1), a["frame"], "back_rest", at=(0, seat + top, -d / 2 + 0.05))


CHAIR = Family(chair, {"legs": (0.9, 1.15), "back_height": (0.9, 1.1)}, {"frame": ("wood", "black", "cream")},
               {"back_panel": {"red": 0.5, "blue": 0.3, "yellow": 0.2}})


def table(p, a, main):
    """A table with a drawer to the front and something on top; hidden: the panel at the back."""
    w, d, h = 0.95 * a["wide"], 0.58, 0.58 * a["tall"] * a["legs"]
    if a["top"] == "round":
        p.add(lathe([(0, h), (0.5, h), (0.5, h + 0.07), (0, h + 0.07)], 40), main, "top")
        w, d = 0.78, 0.62
    else:
        p.add(box(w, 0.07, d + 0.06), main, "top", at=(0, h + 0.035, 0))
    for x in SIDES:
        for z in SIDES:
            p.add(box(0.08, h, 0.08), a["frame"], "legs", at=(x * (w / 2 - 0.08), h / 2, z * (d / 2 - 0.06)))
    p.add(box(w - 0.12, 0.24, d - 0.08), main, "drawer", at=(0, h - 0.12, 0))
    p.add(box(w - 0.3, 0.16, 0.03), "cream", "front", at=(0, h - 0.12, d / 2 - 0.03))
    p.add(ellipsoid(0.035, 0.035, 0.035, 8, 12), "gold", "front", at=(0, h - 0.12, d / 2))
    p.add(box(w - 0.2, 0.21, 0.016), "cream", "drawer", at=(0, h - 0.12, -d / 2 + 0.036))
    p.add(decal(rectangle(w - 0.25, 0.16)), a["back_panel"], "back_panel", at=(0, h - 0.12, -d / 2 + 0.024), turn=BACK)
    if a["on_top"] == "vase":
        p.add(lathe([(0, 0), (0.06, 0), (0.09, 0.07), (0.04, 0.15), (0.055, 0.18), (0, 0.16)], 16), "cream", "on_top",
              at=(0.2, h + 0.07, 0))
        for x, y, z, c in ((0, 0.31, 0, "pink"), (-0.07, 0.25, 0.03, "yellow"), (0.07, 0.26, 0.02, "red")):
            p.add(tube([[0.2, h + 0.2, 0], [0.2 + x, h + y, z]], 0.012, 6), "green", "on_top")
            p.add(ellipsoid(0.05, 0.05, 0.05, 8, 12), c, "on_top", at=(0.2 + x, h + y, z))
    elif a["on_top"] == "books":
        for i, c in enumerate(("teal", "cream", "orange")):
            p.add(box(0.26 - 0.03 * i, 0.05, 0.18), c, "on_top",
                  at=(-0.2, h + 0.1 + 0.051 * i, 0.02), turn=(0, 14 * i - 10, 0))


TABLE = Family(table, {"legs": (0.9, 1.2)}, {"top": ("round", "square"), "frame": ("wood", "black", "cream"),
                                            "on_top": ("vase", "books", "nothing")},
               {"back_panel": {"orange": 0.6, "teal": 0.4}})


def lamp(p, a, main):
    """A lamp with a stand and a shade with a star; hidden: the panel on the back of the shade."""
    low, high = 0.34 * a["wide"] * a["shade"], 0.2 * a["wide"]
    y, h = 0.5 * a["tall"], 0.42
    p.add(lathe([(0, 0), (0.24, 0), (0.24, 0.03), (0.07, 0.09), (0, 0.09)]), a["stand"], "stand")
    if a["pole"] == "straight":
        p.add(cylinder(0.035, y), a["stand"], "stand", at=(0, 0.05, 0))
    else:
        p.add(ellipsoid(0.14, 0.17, 0.14), a["stand"], "stand", at=(0, 0.22, 0))
        p.add(cylinder(0.035, y - 0.15), a["stand"], "stand", at=(0, 0.25, 0))
    shade = [(low, y), (high, y + h)]
    p.add(lathe(shade, 40), main, "shade")
    p.add(lathe([(0, y + 0.01), (low - 0.01, y + 0.01)], 40), "yellow", "glow")  # closed below and above:
    p.add(lathe([(high, y + h), (0, y + h)], 40), "cream", "trim")  # nobody looks in at the back panel
    p.add(ring(low, 0.022, 40), "cream", "trim", at=(0, y, 0))
    p.add(ring(high, 0.022, 40), "cream", "trim", at=(0, y + h, 0))
    p.add(cylinder(0.025, 0.07, 0.01, 12), a["stand"], "trim", at=(0, y + h, 0))
    surface = lathe_surface(shade)
    p.add(drape(decal(star(0.15) + [0, y + h / 2], 3), surface), "cream", "front")
    p.add(drape(decal(star(0.11) + [0, y + h / 2], 3), lathe_surface(shade, 0.014)), "gold", "front")
    r = np.interp([0.06, h - 0.06], [0, h], [low, high])
    p.add(lathe([(r[0] + 0.004, y + 0.06), (r[1] + 0.004, y + h - 0.06)], 20, 120, 120), "cream", "shade")
    r = np.interp([0.09, h - 0.09], [0, h], [low, high])
    p.add(lathe([(r[0] + 0.01, y + 0.09), (r[1] + 0.01, y + h - 0.09)], 20, 130, 100), a["back_panel"], "back_panel")


LAMP = Family(lamp, {"shade": (0.9, 1.12)}, {"stand": ("wood", "black", "gold", "steel"), "pole": ("straight", "vase")},
              {"back_panel": {"blue": 0.45, "pink": 0.35, "green": 0.2}})


def clock(p, a, main):
    """An alarm clock with dial, bells and feet; hidden: its back cover."""
    r, d = 0.36 * a["size"], 0.2 * a["wide"]
    y = r + 0.1 * a["tall"]
    lying = {"at": (0, y, 0), "turn": (90, 0, 0)}
    p.add(lathe([(0, -d), (0.93 * r, -d), (r, -d + 0.04), (r, d - 0.04), (0.93 * r, d), (0, d)], 40), main, **lying)
    p.add(ring(0.87 * r, 0.05, 40), main, "bezel", at=(0, y, d), turn=(90, 0, 0))
    p.add(decal(circle(0.86 * r, 40)), picture("dial"), "front", at=(0, y, d + 0.01))
    p.add(decal(circle(0.7 * r, 40)), "cream", "bezel", at=(0, y, -d - 0.004), turn=BACK)
    p.add(decal(circle(0.58 * r, 32)), a["back_cover"], "back_cover", at=(0, y, -d - 0.012), turn=BACK)
    for x in SIDES:
        p.add(tube([[x * 0.5 * r, y - 0.7 * r, 0], [x * 0.72 * r, 0, 0]], 0.045), a["metal"], "feet")
        bell = lathe([(0, 0), (0.16, 0), (0.15, 0.06), (0.1, 0.12), (0, 0.15)], 24)
        p.add(bell, a["metal"], "bells", at=(x * 0.68 * r, y + 0.86 * r, 0), turn=(0, 0, -38 * x))
    p.add(cylinder(0.03, 0.2, segments=12), a["metal"], "bells", at=(0, y + r, 0))
    p.add(ellipsoid(0.075, 0.05, 0.05, 8, 16), a["metal"], "bells", at=(0, y + r + 0.16, 0))


CLOCK = Family(clock, {"size": (0.95, 1.1)}, {"metal": ("gold", "steel", "black")},
               {"back_cover": {"purple": 0.4, "orange": 0.35, "green": 0.25}})


def house(p, a, main):
    """A house with windows, roof and chimney on a lawn; hidden: the back door and the window beside it."""
    w, d, h, roof = 0.68 * a["wide"], 0.6, 0.46 * a["tall"], 0.34 * a["roof_pitch"]
    p.add(box(0.98 * a["wide"], 0.05, 0.98), "grass", "lawn", at=(0, 0.025, 0))
    p.add(box(w, h, d), main, at=(0, 0.05 + h / 2, 0))
    gable = np.array([[-w / 2, 0], [w / 2, 0], [0, roof - 0.06]])
    p.add(slab(gable, d), main, at=(0, 0.05 + h, 0))
    slope = np.degrees(np.arctan2(roof, w / 2 + 0.07))
    for x in SIDES:
        length = np.hypot(roof, w / 2 + 0.07)
        middle = np.array([x * (w / 4 + 0.035), 0.04 + h + roof / 2, 0])
        p.add(box(length + 0.03, 0.06, d + 0.06), main, "roof", at=middle, turn=(0, 0, -x * slope))
        for z in SIDES:  # boards along the gables
            p.add(box(length + 0.04, 0.07, 0.05), a["roof"], "roof", at=middle + [0, 0, z * (d / 2 + 0.05)],
                  turn=(0, 0, -x * slope))
        eave = middle + (length / 2) * np.array([x * np.cos(np.radians(slope)), -np.sin(np.radians(slope)), 0])
        p.add(box(0.06, 0.08, d + 0.14), a["roof"], "roof", at=eave, turn=(0, 0, -x * slope))
    p.add(box(0.12, 0.07, d + 0.15), a["roof"], "roof", at=(0, 0.06 + h + roof, 0))
    p.add(box(0.12, 0.3, 0.12), "brown", "chimney", at=(0.19 * a["wide"], 0.05 + h + 0.62 * roof, -0.08))
    p.add(box(0.2, 0.3, 0.02), "cream", "front", at=(0, 0.2, d / 2))
    p.add(box(0.15, 0.27, 0.02), a["door"], "front", at=(0, 0.185, d / 2 + 0.01))
    p.add(box(0.24, 0.03, 0.1), "cream", "front", at=(0, 0.05, d / 2 + 0.05))
    p.add(decal(circle(0.075)), "cream", "front", at=(0, 0.05 + h + 0.1, d / 2 + 0.008))
    p.add(decal(circle(0.055)), "glass", "front", at=(0, 0.05 + h + 0.1, d / 2 + 0.014))
    for x in SIDES:
        p.add(box(0.15, 0.17, 0.02), "cream", "windows", at=(x * 0.34 * w, 0.05 + 0.6 * h, d / 2))
        p.add(box(0.11, 0.13, 0.02), "glass", "windows", at=(x * 0.34 * w, 0.05 + 0.6 * h, d / 2 + 0.008))
        p.add(box(0.02, 0.17, 0.2), "cream", "windows", at=(x * w / 2, 0.05 + 0.6 * h, 0))
        p.add(box(0.02, 0.13, 0.16), "glass", "windows", at=(x * (w / 2 + 0.008), 0.05 + 0.6 * h, 0))
    p.add(box(0.24, 0.34, 0.02), "cream", at=(-0.2 * w, 0.22, -d / 2))
    p.add(box(0.19, 0.31, 0.02), a["back_door"], "back_door", at=(-0.2 * w, 0.205, -d / 2 - 0.012))
    p.add(box(0.24, 0.2, 0.02), "cream", at=(0.25 * w, 0.05 + 0.6 * h, -d / 2))
    p.add(box(0.19, 0.15, 0.02), {"lit": "yellow", "dark": "black"}[a["back_window"]], "back_window",
          at=(0.25 * w, 0.05 + 0.6 * h, -d / 2 - 0.012))


HOUSE = Family(house, {"roof_pitch": (0.8, 1.25)},
               {"roof": ("brown", "red", "grey", "teal"), "door": ("wood", "blue", "green")},
               {"back_door": {"red": 0.5, "blue": 0.3, "yellow": 0.2}, "back_window": {"lit": 0.6, "dark": 0.4}})


def tree(p, a, main):
    """A tree with a bird house on its front; hidden: a kite caught on the back."""
    t, w = a["tall"], a["wide"] * a["crown_size"]
    p.add(lathe([(0, 0), (0.5 * w, 0), (0.48 * w, 0.05), (0, 0.06)], 40), "grass", "ground")
    p.add(lathe([(0.13, 0.04), (0.09, 0.12), (0.075, 0.5 * t)], 16), "brown", "trunk")
    if a["crown"] == "round":
        for x, y, z, r in ((0, 0.74, 0, 0.32), (-0.21, 0.58, 0.06, 0.21), (0.22, 0.6, 0.04, 0.2),
                           (0.02, 0.54, 0.17, 0.2), (0, 0.56, -0.17, 0.21), (0.06, 0.94, 0.02, 0.2)):
            p.add(ellipsoid(r * w, r * w, r * w, 12, 24), main, "crown", at=(x * w, y * t, z * w))
        front, y = 0.34 * w, 0.64
    else:
        for bottom, r, h in ((0.22, 0.43, 0.48), (0.5, 0.36, 0.44), (0.8, 0.26, 0.36)):
            p.add(cylinder(r * w, h * t, 0.02, 32), main, "crown", at=(0, bottom * t, 0))
        front, y = 0.37 * w, 0.53
    p.add(box(0.21, 0.19, 0.14), "cream", "front", at=(0, 0.52 * t, front))  # a bird house
    p.add(slab([[-0.16, 0], [0.16, 0], [0, 0.14]], 0.18), "red", "front", at=(0, 0.52 * t + 0.09, front))
    p.add(decal(circle(0.06)), "black", "front", at=(0, 0.53 * t, front + 0.075))
    if a["kite"] != "none":
        kite = np.array([[0, -0.19], [0.12, 0.04], [0, 0.16], [-0.12, 0.04]])
        edge = {"red": "white", "blue": "yellow"}[a["kite"]]
        for scale, z, color in ((1.2, 0.0, edge), (0.95, 0.012, a["kite"])):
            p.add(slab(kite * scale * 0.95 * w, 0.02), color, "kite", at=(0, y * t, -0.35 * w - z), turn=(8, 0, 0))


TREE = Family(tree, {"crown_size": (0.92, 1.08)}, {"crown": ("round", "pine")},
              {"kite": {"red": 0.4, "blue": 0.35, "none": 0.25}})
