"""Toys that go places, or look as if: car, rocket, boat, robot, snowman, fish, cat.

Built like the toys of `toy_things` (same units, same rules for the parts "front" and for hidden
parts). The boat and the fish are shown broadside, as in a picture book: their front, towards +z,
is the side you look at, and the bow and the head point to +x.
"""

from __future__ import annotations

import numpy as np

from gsgen_lib.data.toy_parts import (
    TILE,
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
    loft,
    rectangle,
    ring,
    slab,
    star,
    tube,
)
from gsgen_lib.data.toy_things import BACK, SIDES


def car(p, a, main):
    """A car seen from its bumper: hood, cabin with windows, four wheels; hidden: the hatch and what hangs on it."""
    w, length, t = 0.48 * a["wide"], 0.46 * a["length"], a["tall"]
    along = (0, -90, 0)  # turns an outline in x and y so that its x runs to the front
    hood = 0.34 * t
    front = [(length, 0.1), (length + 0.01, hood - 0.08), (length - 0.05, hood)]
    outline = [(-length, 0.1), *front, (-length, hood + 0.02)]
    p.add(slab(outline, w), main, turn=along)
    p.add(box(w - 0.03, 0.22 * t, 0.5, top=(0.84, 0.6)), "glass", "windows", at=(0, hood + 0.1 * t, -0.08))
    p.add(box((w - 0.03) * 0.84 + 0.02, 0.04, 0.34), main, "roof", at=(0, hood + 0.22 * t, -0.08))
    for x in SIDES:
        for z in (-0.62 * length, 0.62 * length):
            p.add(cylinder(0.125, 0.09), "black", "wheels", at=(x * (w / 2 + 0.045) + 0.045, 0.125, z), turn=(0, 0, 90))
            p.add(decal(circle(0.07, 16)), "steel", "wheels", at=(x * (w / 2 + 0.094), 0.125, z), turn=(0, 90 * x, 0))
        p.add(ellipsoid(0.065, 0.055, 0.03, 8, 16), "yellow", "front", at=(x * 0.32 * w, hood - 0.1, length + 0.01))
        p.add(box(0.05, 0.1, 0.02), "red", "tail_lights", at=(x * 0.44 * w, hood - 0.06, -length))
    p.add(box(0.3 * w, 0.06, 0.02), "black", "front", at=(0, hood - 0.12, length + 0.012))
    p.add(box(w + 0.04, 0.06, 0.09), "steel", "bumpers", at=(0, 0.13, length + 0.04))
    p.add(box(w + 0.04, 0.06, 0.13), "steel", "bumpers", at=(0, 0.13, -length - 0.06))
    p.add(box(0.74 * w, hood - 0.14, 0.012), "cream", at=(0, hood / 2 + 0.08, -length))
    p.add(decal(rectangle(0.68 * w, hood - 0.17)), a["hatch"], "hatch",
          at=(0, hood / 2 + 0.08, -length - 0.012), turn=BACK)
    if a["on_the_back"] == "spare wheel":
        p.add(cylinder(0.09, 0.07), "black", "on_the_back", at=(0, hood / 2 + 0.08, -length - 0.02), turn=(-90, 0, 0))
        p.add(decal(circle(0.05, 16)), "steel", "on_the_back", at=(0, hood / 2 + 0.08, -length - 0.094), turn=BACK)
    elif a["on_the_back"] == "suitcase":
        p.add(box(0.24, 0.15, 0.08), "brown", "on_the_back", at=(0, hood / 2 + 0.07, -length - 0.06))
        p.add(box(0.03, 0.15, 0.09), "gold", "on_the_back", at=(0, hood / 2 + 0.07, -length - 0.06))


CAR = Family(car, {"length": (0.92, 1.15)}, {},
             {"on_the_back": {"spare wheel": 0.4, "suitcase": 0.25, "nothing": 0.35},
              "hatch": {"white": 0.6, "black": 0.4}})


def rocket(p, a, main):
    """A rocket on three fins with a nose cone and a round window; hidden: what is on its back."""
    t, w = a["tall"], 0.22 * a["wide"]
    body = np.array([(0.7 * w, 0.12), (w, 0.27), (1.04 * w, 0.45), (0.9 * w, 0.74)]) * [1, t]
    top = body[-1, 1]
    p.add(lathe(body), main)
    nose = [(0.9 * w, 0), (0.6 * w, 0.16), (0.28 * w, 0.25), (0, 0.3 * a["nose"])]
    p.add(lathe(nose), a["trim"], "nose", at=(0, top, 0))
    p.add(lathe([(0, 0.12 * t), (0.7 * w, 0.12 * t)]), "steel", "nozzle")
    p.add(cylinder(0.6 * w, 0.08, 0.4 * w), "steel", "nozzle", at=(0, 0.12 * t - 0.07, 0))
    p.add(lathe([(0, -0.12), (0.25 * w, -0.02), (0.45 * w, 0.06)], 16), "orange", "flame", at=(0, 0.12 * t - 0.08, 0))
    fin = np.array([[0.8 * w, 0.16 * t], [w + 0.25, 0.02], [w + 0.25, 0.14], [w, 0.42 * t]])
    for azimuth in (45, 135, 225, 315):
        p.add(slab(fin, 0.05), main, "fins", turn=(0, azimuth, 0))
    y = 0.53 * t
    p.add(drape(decal(circle(0.135) + [0, y], 4), lathe_surface(body, 0.01)), "cream", "front")
    p.add(drape(decal(circle(0.1) + [0, y], 4), lathe_surface(body, 0.018)), "glass", "front")
    p.add(drape(decal(rectangle(0.24, 0.3, 6) + [0, 0.44 * t], 4), lathe_surface(body, 0.008)), "cream", turn=BACK)
    if a["on_the_back"] == "booster":
        p.add(lathe([(0.05, 0), (0.085, 0.04), (0.085, 0.34), (0, 0.46)], 20), "gold", "on_the_back",
              at=(0, 0.26 * t, -w))
    elif a["on_the_back"] == "hatch":
        hatch = decal(rectangle(0.18, 0.24, 6) + [0, 0.44 * t], 4)
        p.add(drape(hatch, lathe_surface(body, 0.016)), "black", "on_the_back", turn=BACK)


ROCKET = Family(rocket, {"nose": (0.9, 1.2)}, {"trim": ("red", "black", "yellow", "blue")},
                {"on_the_back": {"booster": 0.45, "hatch": 0.3, "nothing": 0.25}})


def boat(p, a, main):
    """A sailing boat, bow to +x, so that its front is a flank; hidden: the sign on the far side of the sail."""
    w, t = a["wide"], a["tall"]
    x = np.linspace(-1, 1, 25)
    beam = 0.2 * np.sqrt(np.clip(1 - np.clip(x + 0.15, 0, None) ** 2 / 1.15**2, 0, 1))  # pointed at the bow, +x
    keel = 0.24 * np.clip(1 - np.abs(x) ** 3, 0.3, 1) * np.clip(8 * (1 - x), 0.02, 1)
    deck = 0.28 + 0.05 * x**2
    turn = np.linspace(0, np.pi, 13)
    hull = np.stack([np.broadcast_to(0.5 * w * x[:, None], (25, 13)), deck[:, None] - keel[:, None] * np.sin(turn),
                     beam[:, None] * np.cos(turn)], -1)
    stern = np.broadcast_to(np.array([-0.5 * w, deck[0], 0.0]), (1, 13, 3))
    closed = np.concatenate([stern, hull])
    p.add(loft(closed[:, ::-1], np.zeros((26, 13, 2))), a["color"], "hull")
    gunwale = np.stack([hull[:, -1], hull[:, 0]])  # (2, 25, 3)
    p.add(loft(gunwale, gunwale[..., [0, 2]] / TILE), main, "deck")
    for side in (0, -1):
        p.add(tube(hull[:, side], 0.022, 8), "cream", "deck")
    p.add(cylinder(0.025, 0.88 * t, segments=10), "wood", "mast", at=(-0.02, 0.25, 0))
    foot, head = 0.4, 0.24 + 0.86 * t
    sail = np.array([[-0.46 * w * a["sail"], foot], [-0.05, foot], [-0.05, head]])
    legs = sail[2, 1] - foot, sail[1, 0] - sail[0, 0]
    r = (sum(legs) - np.hypot(*legs)) / 2  # of the largest circle inside the sail
    grid = decal(sail, 4)
    p.add(grid._replace(uv=grid.vertices[grid.faces][..., :2] / 0.25), main, "sail", at=(0, 0, 0.014))
    p.add(grid, "cream", "sail", at=(0, 0, -0.014))
    p.add(slab([[0.03, foot], [0.4 * w, foot], [0.03, head - 0.12]], 0.03), "cream", "jib")
    p.add(slab([[-0.02, 0], [0.16, 0.05], [-0.02, 0.1]], 0.02), a["flag"], "flag", at=(0, 0.25 + 0.86 * t, 0))
    for i in (7, 11, 15):
        spot = (0.5 * w * x[i], 0.19, 0.95 * beam[i] + 0.005)
        p.add(ring(0.045, 0.016, 16), "cream", "front", at=spot, turn=(90, 0, 0))
        p.add(decal(circle(0.045, 16)), "glass", "front", at=(spot[0], spot[1], spot[2] + 0.004))
    if a["sail_back"] != "none":
        outline, color = (star(0.88 * r), "blue") if a["sail_back"] == "star" else (heart(0.82 * r), "red")
        p.add(decal(outline), color, "sail_back", at=(-0.05 - r, foot + r, -0.02), turn=BACK)


BOAT = Family(boat, {"sail": (0.9, 1.05)}, {"flag": ("red", "yellow", "blue")},
              {"sail_back": {"star": 0.5, "heart": 0.3, "none": 0.2}})


def robot(p, a, main):
    """A robot on two tracks with head and arms; hidden: its back panel and what is on its back."""
    w, h, d = 0.42 * a["wide"], 0.42 * a["tall"], 0.3
    head = 0.26 * a["head_size"]
    wheel, ahead = circle(0.09) + [0, 0.09], np.array([0.2, 0])
    track = np.concatenate([wheel[18:] + ahead, wheel[:7] + ahead, wheel[6:19] - ahead])
    for x in SIDES:
        p.add(slab(track, 0.15), "black", "tracks", at=(x * (w / 2 - 0.04), 0, 0), turn=(0, 90, 0))
        for z in (-0.19, 0, 0.19):
            p.add(decal(circle(0.055, 16)), "steel", "tracks", at=(x * (w / 2 + 0.04), 0.09, z), turn=(0, 90 * x, 0))
        shoulder = np.array([x * (w / 2 + 0.01), 0.17 + 0.78 * h, 0])
        hand = shoulder + [x * 0.13, -0.2, 0.1]
        p.add(tube([shoulder, shoulder + [x * 0.1, -0.02, 0], hand], 0.042, 10), "steel", "arms")
        p.add(ellipsoid(0.065, 0.065, 0.065, 8, 16), a["trim"], "arms", at=hand)
        p.add(cylinder(0.075, 0.03), "white", "front",
              at=(x * 0.27 * head * 1.4, 0.2 + h + 0.55 * head, 0.36 * head), turn=(90, 0, 0))
        p.add(cylinder(0.035, 0.04, segments=12), "black", "front",
              at=(x * 0.27 * head * 1.4, 0.2 + h + 0.55 * head, 0.36 * head), turn=(90, 0, 0))
        p.add(cylinder(0.05, 0.05, segments=16), a["trim"], "head",
              at=(x * 0.68 * head + 0.025, 0.2 + h + 0.5 * head, 0), turn=(0, 0, 90))
    p.add(box(w, h, d), main, at=(0, 0.17 + h / 2, 0))
    p.add(cylinder(0.08, 0.06), "steel", "neck", at=(0, 0.16 + h, 0))
    p.add(box(1.36 * head, head, 0.8 * head), main, "head", at=(0, 0.21 + h + head / 2, 0))
    p.add(box(0.5 * head, 0.04, 0.02), "black", "front", at=(0, 0.21 + h + 0.17 * head, 0.4 * head))
    p.add(cylinder(0.015, 0.12, segments=8), "steel", "antenna", at=(0, 0.2 + h + head, 0))
    p.add(ellipsoid(0.045, 0.045, 0.045, 8, 16), a["trim"], "antenna", at=(0, 0.34 + h + head, 0))
    p.add(box(0.6 * w, 0.46 * h, 0.02), "cream", "front", at=(0, 0.17 + 0.56 * h, d / 2))
    for x, c in ((-0.17, "red"), (0, "yellow"), (0.17, "green")):
        p.add(decal(circle(0.026, 12)), c, "front", at=(x * w, 0.17 + 0.65 * h, d / 2 + 0.014))
    p.add(box(0.42 * w, 0.05, 0.01), "steel", "front", at=(0, 0.17 + 0.46 * h, d / 2 + 0.01))
    back = 0.17 + 0.52 * h
    p.add(box(0.8 * w, 0.8 * h, 0.012), "cream", at=(0, back, -d / 2))
    p.add(decal(rectangle(0.7 * w, 0.7 * h)), a["back_panel"], "back_panel", at=(0, back, -d / 2 - 0.012), turn=BACK)
    if a["on_the_back"] == "key":
        p.add(cylinder(0.025, 0.08, segments=10), "gold", "on_the_back", at=(0, back, -d / 2), turn=(-90, 0, 0))
        for x in SIDES:
            p.add(ring(0.06, 0.024, 16), "gold", "on_the_back", at=(x * 0.065, back, -d / 2 - 0.09), turn=(90, 0, 0))
    elif a["on_the_back"] == "backpack":
        p.add(box(0.5 * w, 0.55 * h, 0.11, top=(0.85, 0.8)), "brown", "on_the_back", at=(0, back, -d / 2 - 0.065))
        p.add(box(0.36 * w, 0.2 * h, 0.03), "wood", "on_the_back", at=(0, back - 0.1 * h, -d / 2 - 0.115))


ROBOT = Family(robot, {"head_size": (0.9, 1.15)}, {"trim": ("red", "yellow", "blue", "green")},
               {"on_the_back": {"key": 0.4, "backpack": 0.35, "nothing": 0.25},
                "back_panel": {"purple": 0.6, "orange": 0.4}})


def snowman(p, a, main):
    """Two balls of snow and one in a pullover, with hat, nose and arms; hidden: a backpack."""
    w, t, r = a["wide"], a["tall"], a["belly"]
    low, mid, top = 0.35 * r, 0.26, 0.19
    y1, y2, y3 = 0.31 * t, 0.69 * t, 1.0 * t
    p.add(ellipsoid(low * w, 0.34 * t, low * w), "white", "snow", at=(0, y1, 0))
    p.add(ellipsoid(mid * w, 0.25 * t, mid * w), main, "pullover", at=(0, y2, 0))
    p.add(ellipsoid(top, 0.19, top), "white", "snow", at=(0, y3, 0))
    p.add(ring(0.15, 0.05, 28), a["scarf"], "scarf", at=(0, y3 - 0.15, 0))
    p.add(box(0.08, 0.2, 0.05), a["scarf"], "scarf", at=(0.1, y3 - 0.25, 0.22 * w), turn=(-12, 10, 8))
    if a["hat"] == "top hat":
        p.add(cylinder(0.22, 0.03), "black", "hat", at=(0, y3 + 0.11, 0))
        p.add(cylinder(0.14, 0.2), "black", "hat", at=(0, y3 + 0.13, 0))
        p.add(cylinder(0.145, 0.05), a["scarf"], "hat", at=(0, y3 + 0.14, 0))
    else:
        p.add(lathe([(0.185, 0.05), (0.18, 0.1), (0.11, 0.2), (0, 0.24)]), main, "hat", at=(0, y3, 0))
        p.add(ring(0.17, 0.04, 28), "cream", "hat", at=(0, y3 + 0.07, 0))
        p.add(ellipsoid(0.06, 0.06, 0.06, 8, 16), "cream", "hat", at=(0, y3 + 0.26, 0))
    for x in SIDES:
        p.add(ellipsoid(0.033, 0.04, 0.03, 8, 12), "black", "front", at=(0.075 * x, y3 + 0.03, 0.165))
        arm = np.array([x * 0.22 * w, y2 + 0.06, 0.05])
        p.add(tube([arm, arm + [x * 0.22, 0.14, 0.02]], 0.022, 8), "brown", "arms")
        p.add(ellipsoid(0.08, 0.08, 0.08, 10, 16), main, "arms", at=arm + [x * 0.22, 0.15, 0.02])  # mittens
    p.add(cylinder(0.045, 0.2, 0.006, 16), "orange", "front", at=(0, y3 - 0.02, 0.16), turn=(90, 0, 0))
    for y in (0.28, 0.45):
        p.add(ellipsoid(0.038, 0.038, 0.03, 8, 12), "black", "front",
              at=(0, y * t, low * w * np.sqrt(1 - ((y - 0.31) / 0.34) ** 2)))
    if a["backpack"] != "none":
        p.add(box(0.24, 0.24, 0.1, top=(0.8, 0.7)), a["backpack"], "backpack", at=(0, y2 + 0.01, -mid * w + 0.01))
        pocket = {"red": "cream", "teal": "yellow"}[a["backpack"]]  # a part never shares a colour between values
        p.add(box(0.17, 0.09, 0.02), pocket, "backpack", at=(0, y2 - 0.04, -mid * w - 0.045))


SNOWMAN = Family(snowman, {"belly": (0.98, 1.12)},
                 {"hat": ("top hat", "bobble hat"), "scarf": ("red", "green", "blue", "yellow")},
                 {"backpack": {"red": 0.35, "teal": 0.35, "none": 0.3}})


def fish(p, a, main):
    """A fish with its head to +x, so that its front is a flank; hidden: the spot on the other flank."""
    rx, ry, rz = 0.38 * a["wide"], 0.29 * a["tall"] * a["belly"], 0.16

    def surface(gap):
        return lambda x, y: rz * np.sqrt(np.maximum(1 - (x / rx) ** 2 - (y / ry) ** 2, 0)) + gap

    p.add(ellipsoid(rx, ry, rz, 18, 36), main)
    tail = np.array([[-0.06, 0.0], [-0.3, 0.24], [-0.22, 0.0], [-0.3, -0.24]]) - [0.82 * rx, 0]
    p.add(slab(tail[:3], 0.04), a["fins"], "fins")
    p.add(slab(tail[[0, 2, 3]], 0.04), a["fins"], "fins")
    p.add(slab([[-0.2, 0.75 * ry], [0.14, 0.85 * ry], [-0.02, ry + 0.14], [-0.18, ry + 0.12]], 0.04), a["fins"], "fins")
    p.add(slab([[-0.1, -0.8 * ry], [0.08, -0.88 * ry], [-0.1, -ry - 0.12]], 0.04), a["fins"], "fins")
    p.add(ellipsoid(0.04, 0.055, 0.06, 8, 16), "pink", "mouth", at=(rx - 0.01, -0.05, 0))
    for z, turn in ((1, (0, 0, 0)), (-1, BACK)):
        eye = [z * 0.6 * rx, 0.22 * ry]
        part = "front" if z > 0 else "far_eye"
        p.add(drape(decal(circle(0.075) + eye, 4), surface(0.012)), "white", part, turn=turn)
        p.add(drape(decal(circle(0.042, 16) + eye + [z * 0.012, 0], 4), surface(0.022)), "black", part, turn=turn)
        p.add(slab([[-0.16, -0.03], [0, -0.05], [0, 0.05], [-0.14, 0.07]], 0.03), a["fins"], "fins",
              at=(0.1, -0.35 * ry, z * (rz + 0.03)), turn=(0, z * 25, -20))
    p.add(drape(decal(circle(0.13, 28) + [0.05 * rx, 0.25 * ry], 5), surface(0.008)), "cream", turn=BACK)
    if a["far_spot"] != "none":
        spot = drape(decal(circle(0.1) + [0.05 * rx, 0.25 * ry], 5), surface(0.018))
        p.add(spot, a["far_spot"], "far_spot", turn=BACK)


FISH = Family(fish, {"belly": (0.9, 1.15)}, {"fins": ("orange", "yellow", "blue", "pink")},
              {"far_spot": {"red": 0.4, "blue": 0.4, "none": 0.2}})


def cat(p, a, main):
    """A sitting cat on a cushion, face to +z; hidden: to which side its tail lies."""
    t, w = a["tall"], 0.27 * a["wide"]
    p.add(lathe([(0, 0), (w + 0.13, 0), (w + 0.18, 0.05), (w + 0.13, 0.1), (0, 0.12)], 40), a["cushion"], "cushion")
    body = np.array([(0, 0.1), (0.8 * w, 0.1), (w, 0.2), (0.96 * w, 0.32), (0.72 * w, 0.48), (0.5 * w, 0.6)])
    body[1:, 1] = 0.1 + (body[1:, 1] - 0.1) * t
    p.add(lathe(body), main)
    y, r = body[-1, 1] + 0.1, 0.2 * a["head_size"]
    p.add(ellipsoid(1.1 * r, 0.92 * r, 0.95 * r), main, "head", at=(0, y, 0.04))
    for x in SIDES:
        p.add(cylinder(0.085, 0.15, 0.005, 4), main, "head", at=(x * 0.6 * r, y + 0.62 * r, 0.04), turn=(0, 0, -14 * x))
        p.add(decal([[-0.04, 0.02], [0.04, 0.02], [0, 0.11]]), "pink", "front",
              at=(x * 0.6 * r, y + 0.62 * r, 0.105), turn=(-24, 0, -14 * x))
        p.add(ellipsoid(0.045, 0.055, 0.03, 8, 16), a["eyes"], "front",
              at=(x * 0.42 * r, y + 0.18 * r, 0.86 * r + 0.03))
        p.add(ellipsoid(0.018, 0.045, 0.02, 8, 12), "black", "front", at=(x * 0.42 * r, y + 0.18 * r, 0.86 * r + 0.048))
        p.add(ellipsoid(0.075, 0.055, 0.1, 8, 16), "cream", "paws", at=(x * 0.11, 0.14, w))
        p.add(ellipsoid(0.11, 0.14, 0.16, 10, 20), main, "paws", at=(x * 0.8 * w, 0.2, 0.02))
    p.add(ellipsoid(0.5 * r, 0.32 * r, 0.3 * r, 10, 20), "cream", "front", at=(0, y - 0.32 * r, 0.8 * r + 0.04))
    p.add(ellipsoid(0.035, 0.025, 0.03, 8, 12), "pink", "front", at=(0, y - 0.14 * r, 1.08 * r + 0.04))
    p.add(drape(decal(circle(0.13) * [1, 1.3] + [0, 0.1 + 0.22 * t], 5), lathe_surface(body, 0.01)), "cream", "front")
    z = -w - 0.04
    if a["tail"] == "stub":
        p.add(ellipsoid(0.08, 0.08, 0.08, 10, 16), "cream", "tail", at=(0, 0.2, z + 0.02))
    else:
        x = 1 if a["tail"] == "right" else -1
        path = np.array([[-0.02, 0.17, z], [0.03, 0.15, z - 0.03], [0.09, 0.16, z - 0.03], [0.13, 0.21, z - 0.01],
                         [0.13, 0.29, z + 0.01], [0.07, 0.33, z + 0.03]])
        p.add(tube(path * [0.88 * x, 1, 1], 0.058, 10), "cream", "tail")


CAT = Family(cat, {"head_size": (0.95, 1.15)},
             {"cushion": ("red", "teal", "purple", "grey"), "eyes": ("green", "yellow", "blue")},
             {"tail": {"left": 0.5, "right": 0.3, "stub": 0.2}})
