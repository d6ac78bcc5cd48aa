"""From a mesh to a stored object: where the cameras stand, which points are kept, what it is called.

Every object is photographed the same way. Views 0..7 stand evenly around it at 15 degrees above the
horizon (azimuth 0, 45, ..., 315: view 0 is the front). The others are spread over the band of elevations
[-20, 70]: equal steps in sin(elevation) cover equal areas of the sphere, and turning the azimuth by the
golden angle (137.5 degrees) from one to the next keeps neighbours apart; a seed made from the object's id
jitters both, so that no two objects share these 16 cameras.

Surface points are uniform by area over what can be seen: a sample of the surface is kept if at least one
camera sees it, and its normal is turned towards a camera that does. So the inside of a cupboard holds
no points, and sheets of a single layer have normals that make sense.

`render_folder` (`gsgen data render FOLDER`) does this for any meshes of yours.
"""

from __future__ import annotations

import colorsys
import hashlib
import warnings
from pathlib import Path

import numpy as np

from gsgen_lib.data.meshes import MESH_SUFFIXES, Mesh, load_mesh, normalise
from gsgen_lib.data.objects import SPLITS, check_sheet, list_objects, load_object, object_cameras, save_object
from gsgen_lib.data.raycast import LIGHT, render_mesh, sample_surface, visible_points

RADIUS, FOV = 1.8, 40.0  # of the standard data camera
SUPERSAMPLE = 4  # rays per pixel and side: with 2, thin parts are only good to about 31 dB against 4
RING, RING_ELEVATION = 8, 15.0
BAND = (-20.0, 70.0)  # elevations of the other views, degrees


def id_generator(id: str) -> np.random.Generator:
    """A random generator that belongs to an object's id, the same on every machine.

    >>> bool(id_generator("mug").random() == id_generator("mug").random())
    True
    """
    return np.random.default_rng(int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "little"))


def view_angles(views: int, generator: np.random.Generator) -> tuple[list[float], list[float]]:
    """Elevation and azimuth in degrees of the standard views (header), rounded to 1/100 degree.

    >>> elevation, azimuth = view_angles(24, np.random.default_rng(0))
    >>> azimuth[:3], elevation[:3], len(azimuth)
    ([0.0, 45.0, 90.0], [15.0, 15.0, 15.0], 24)
    """
    if views < 1:
        raise ValueError(f"views: wanted >= 1, got {views}")
    ring = min(RING, views)
    elevation, azimuth = [RING_ELEVATION] * ring, [360.0 * i / ring for i in range(ring)]
    k = views - ring
    low, high = np.sin(np.deg2rad(BAND))
    height = low + (high - low) * (np.arange(k) + generator.random(k)) / max(k, 1)
    turn = generator.random() * 360 + 137.508 * np.arange(k) + generator.uniform(-10, 10, k)
    order = generator.permutation(k)
    elevation += np.round(np.rad2deg(np.arcsin(height[order])), 2).tolist()
    azimuth += np.round(turn[order] % 360, 2).tolist()
    return elevation, azimuth


def visible_sample(mesh: Mesh, eyes: np.ndarray, n: int, generator: np.random.Generator):
    """n surface points that at least one eye (E, 3) sees: points, normals towards that eye, colors, (n, 3) each.

    Raises ValueError if hardly any of the surface can be seen.

    >>> from gsgen_lib.data.meshes import Mesh
    >>> square = Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 2, 1]])   # wound to face -z
    >>> points, normals, colors = visible_sample(square, np.array([[0, 0, 3.0]]), 5, np.random.default_rng(0))
    >>> float(normals[0, 2])
    1.0
    """
    found = []
    for _ in range(60):
        points, normals, colors = sample_surface(mesh, 2 * n, generator)
        seen = visible_points(mesh, points, normals, eyes)  # (E, 2n)
        keep = seen.any(axis=0)
        first = eyes[seen.argmax(axis=0)]
        side = np.where(np.einsum("nx,nx->n", first - points, normals) < 0, -1, 1)[:, None]
        found.append([x[keep] for x in (points, normals * side, colors)])
        if sum(len(f[0]) for f in found) >= n:
            return tuple(np.concatenate(x)[:n].astype(np.float32) for x in zip(*found, strict=True))
    raise ValueError("mesh: next to none of its surface can be seen from outside")


def make_object(mesh: Mesh, root, facts: dict, size: int = 64, views: int = 24, points: int = 2048,
                glb: bytes | None = None) -> dict:
    """Photograph a normalised mesh and store it in `root`; returns its entry of objects.json.

    facts: id, name, category, split and whatever else shall stand in the entry; a caption is made from
    name and colours unless given. Raises ValueError if the mesh is (nearly) invisible.
    """
    check_sheet(size, views)
    generator = id_generator(facts["id"])
    elevation, azimuth = view_angles(views, generator)
    camera = dict(size=size, radius=RADIUS, fov=FOV, elevation=elevation, azimuth=azimuth)
    cameras = object_cameras(camera)
    rgba = render_mesh(mesh, cameras, SUPERSAMPLE).rgba
    if (rgba[..., 3] > 0.5).mean() < 0.002:
        raise ValueError("mesh: nearly invisible, it covers less than 0.2% of its pictures")
    cloud = visible_sample(mesh, cameras.centers.numpy().astype(np.float64), points, generator)
    unlit = np.clip(cloud[2] / (cloud[1] ** 2 @ LIGHT)[:, None], 0, 1)
    caption = facts.get("caption") or describe(facts["name"], unlit)
    images = np.uint8(np.round(rgba * 255))
    return save_object(root, facts | {"caption": caption} | camera, images, *cloud, glb=glb)


# --- words -----------------------------------------------------------------------------------


def color_name(rgb) -> str:
    """One of 12 plain words for an sRGB colour in [0, 1], by hue, saturation and brightness.

    >>> [color_name(c) for c in [(1, 0, 0), (0.4, 0.25, 0.1), (0.9, 0.9, 0.9), (0.1, 0.2, 0.7)]]
    ['red', 'brown', 'white', 'blue']
    """
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in rgb))
    hue *= 360
    if value < 0.17:
        return "black"
    if saturation < 0.14:
        return "white" if value > 0.62 else "gray" if value > 0.25 else "black"
    if 12 <= hue < 72 and saturation < (0.5 if hue < 50 else 0.35) and value > 0.66:
        return "beige"
    if 12 <= hue < 50 and (value < 0.72 or saturation < 0.5):
        return "brown"
    for upper, name in ((12, "red"), (40, "orange"), (68, "yellow"), (176, "green"), (255, "blue"), (290, "purple"),
                        (345, "pink"), (361, "red")):
        if hue < upper:
            return "brown" if name == "red" and value < 0.2 else name
    raise AssertionError(hue)


def describe(name: str, colors: np.ndarray) -> str:
    """A caption from a name and the colours (n, 3) of the surface: its main colour, and a second one
    that covers at least a fifth; "colorful" if two do not cover half.

    >>> describe("Garden chair", np.array([[1, 0, 0]] * 6 + [[1, 1, 1]] * 4))
    'a red and white garden chair'
    """
    names, counts = np.unique([color_name(c) for c in colors], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    words = [str(names[i]) for i in order[:2] if i == order[0] or counts[i] >= 0.2 * len(colors)]
    if counts[order[:2]].sum() < 0.5 * len(colors):
        words = ["colorful"]
    noun = name[0].lower() + name[1:] if name[1:2].islower() else name
    words = [w for w in words if w not in noun.lower().split()]  # not "a red red box"
    phrase = " ".join([" and ".join(words), noun]).strip()
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


# --- your own meshes -------------------------------------------------------------------------


def render_folder(folder: Path, out: Path, size: int = 64, views: int = 24, points: int = 2048,
                  split: str = "train", overwrite: bool = False) -> list[dict]:
    """Render every .obj, .glb, .gltf and .ply below a folder, in the format of the shipped objects.

    What cannot be read is skipped and named with the reason; objects that are already there, undamaged and with
    the same size, split and numbers of views and points, are kept, so an interrupted run goes on where it
    stopped. Returns the entries of objects.json. Raises FileNotFoundError if there is no such folder or no mesh
    in it, ValueError if no mesh could be read or an argument does not fit (`out` must not be or hold `folder`).

    Args:
        folder: where the meshes are, y up, the front towards +z, with their textures.
        out: the folder to write, for `load_object(id, out)`.
        size: pixels a side.
        views: pictures per object, at least 1.
        points: surface points per object.
        split: train, val or test, written into each entry.
        overwrite: render all again.
    """
    from tqdm import tqdm

    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {folder} is not a folder")
    if size < 1 or views < 1 or points < 1:
        raise ValueError(f"size, views, points: wanted >= 1, got {size}, {views}, {points}")
    if split not in SPLITS:
        raise ValueError(f"split: wanted one of {SPLITS}, got {split!r}")
    check_sheet(size, views)
    inside, target = folder.resolve(), out.resolve()
    if target == inside or target in inside.parents:
        raise ValueError(f"out: {out} is or holds the folder of the meshes, {folder}; name a folder beside or below it")
    files = sorted(p for p in folder.rglob("*")
                   if p.suffix.lower() in MESH_SUFFIXES and target not in (inside / p.relative_to(folder)).parents)
    if not files:
        raise FileNotFoundError(f"folder: no {', '.join(MESH_SUFFIXES)} below {folder}")
    entries, skipped = [], []
    with tqdm(files, desc="render", unit="mesh") as bar:
        for file, id in zip(files, _make_ids(files, folder), strict=True):
            bar.set_postfix_str(id)
            try:
                if not file.is_file():  # a pipe would be waited on for ever
                    raise ValueError("not a plain file")
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                entry = None if overwrite else _already_there(out, id, digest, size, views, points, split)
                if entry is None:
                    with warnings.catch_warnings(record=True) as caught:
                        warnings.simplefilter("always")
                        mesh = normalise(load_mesh(file, on_missing="warn"))
                    for warning in caught:
                        bar.write(f"note: {warning.message}")
                    facts = dict(id=id, name=_readable(file.stem), category="own", split=split, licence="your own",
                                 creator="", source=file.relative_to(folder).as_posix(), source_sha256=digest)
                    entry = make_object(mesh, out, facts, size, views, points)
                entries.append(entry)
            except (ValueError, OSError, MemoryError) as error:
                skipped.append(file)
                bar.write(f"skipped {file}: {str(error).removeprefix(f'{file}: ')}")
            bar.update()
    print(f"{len(entries)} objects in {out}, {len(skipped)} files skipped")
    if not entries:
        raise ValueError(f"folder: none of the {len(files)} meshes below {folder} could be read")
    return entries


def _make_ids(files: list[Path], folder: Path) -> list[str]:
    """A readable, unique id per file: its name; where names repeat, with the path in front, then with the suffix,
    and where no ASCII letter tells files apart, with a digest of the path (which stays the same in every run).

    >>> here = Path("meshes")
    >>> _make_ids([here / "mug.obj", here / "a/pot.obj", here / "b/pot.obj"], here)
    ['mug', 'a_pot', 'b_pot']
    """
    def slug(text):
        return "_".join("".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()) or "mesh"

    names = [f.relative_to(folder) for f in files]
    digests = [hashlib.sha256(n.as_posix().encode("utf-8", "surrogateescape")).hexdigest() for n in names]
    ids = [slug(n.stem) for n in names]
    for longer in (lambda n, _: slug(n.with_suffix("").as_posix()), lambda n, _: slug(n.as_posix()),
                   lambda n, digest: f"{slug(n.stem)}_{digest[:8]}", lambda n, digest: f"{slug(n.stem)}_{digest}"):
        ids = [longer(n, d) if ids.count(i) > 1 else i for i, n, d in zip(ids, names, digests, strict=True)]
    assert len(set(ids)) == len(ids), "two files share an id, one would overwrite the other"
    return ids


def _readable(stem: str) -> str:
    """'Old_garden-chair01' -> 'old garden chair'.

    >>> _readable("Old_garden-chair01")
    'old garden chair'
    """
    return " ".join("".join(c if c.isalpha() else " " for c in stem.lower()).split()) or "object"


def _already_there(out: Path, id: str, digest: str, size: int, views: int, points: int, split: str) -> dict | None:
    """The entry of an object that is whole and just what would be made now."""
    try:
        entry = next(e for e in list_objects(root=out) if e["id"] == id)
        stored = load_object(id, out)
    except (FileNotFoundError, ValueError, StopIteration):
        return None
    has = (entry.get("source_sha256"), entry["size"], len(entry["azimuth"]), len(stored.points), entry["split"])
    return entry if has == (digest, size, views, points, split) else None
