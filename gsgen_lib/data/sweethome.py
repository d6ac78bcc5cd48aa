"""Building the shipped objects from the furniture libraries of Sweet Home 3D.

The Debian package `sweethome3d-furniture` 1.8 holds five libraries (.sh3f), which are zip archives of

    PluginFurnitureCatalog.properties    facts of model i: name#i, category#i, creator#i, model#i, width#i ...
    FOLDER/MODEL/MODEL.obj, .mtl, textures

with 820 models under CC0 or CC-BY. Which of them ship, under which name, category and split, was decided by
looking at every one of them and is written down in `data/selection.json`:

    {"kept":    {"Scopia/12": {"id": ..., "name": ..., "category": ..., "split": ..., "obj_sha256": ...}, ...},
     "dropped": {"Scopia/13": "reason", ...}}

A key is the library and the number i in its catalogue. `build` follows that list and nothing else, so it makes
the same files again; a model that is missing or differs (SHA-256 of its .obj) is an error.

As Sweet Home 3D shows a model, so it is built: turned by the catalogue's `modelRotation`, stretched along
its axes to the catalogue's width, height and depth; x is width, y up, and the front looks along +z.

    gsgen data build sweethome3d-furniture_1.8-1_all.deb data

Attribution is a duty for CC-BY: `data/CREDITS.md` names creator, licence and source of every object.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from gsgen_lib.data.data_docs import write_credits, write_data_card
from gsgen_lib.data.glb import save_glb
from gsgen_lib.data.meshes import Mesh, load_mesh, normalise, rotate
from gsgen_lib.data.objects import SPLITS, list_objects, write_index
from gsgen_lib.data.prerender import make_object

CATALOGUE = "PluginFurnitureCatalog.properties"
GLB_TEXTURE = 512  # pixels a side, at most, in the shipped meshes


def build(source: Path, out: Path, selection: Path | None = None, only: str | None = None,
          size: int = 64, views: int = 24, points: int = 2048) -> list[dict]:
    """Build the shipped objects again from the furniture libraries; returns their entries of objects.json.

    The same source and program give the same bytes. Raises FileNotFoundError or ValueError naming the library,
    model or file that is missing or not as listed.

    Args:
        source: the Debian package sweethome3d-furniture 1.8, one .sh3f, or a folder with .sh3f files at any depth.
        out: the folder to write.
        selection: which models, as described in data/DATA.md; by default selection.json in `out`, else the shipped one.
        only: ids separated by commas, to build just these (the documents are then left alone).
        size: pixels a side.
        views: pictures per object.
        points: surface points per object.
    """
    from tqdm import tqdm

    source, out = Path(source), Path(out)
    kept = _read_selection(_find_selection(out, selection))["kept"]
    wanted = {key: facts for key, facts in kept.items() if only is None or facts["id"] in only.split(",")}
    if not wanted:
        raise ValueError(f"only: no kept object has one of the ids {only!r}")
    entries = []
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=len(wanted), desc="build", unit="object") as bar:
        libraries = open_libraries(source, Path(scratch))
        try:
            for key, facts in wanted.items():
                bar.set_postfix_str(facts["id"])
                entries.append(_build_one(libraries, key, facts, out, size, views, points))
                bar.update()
        finally:
            for archive, _, _ in libraries.values():
                archive.close()
    if only is None:
        write_index(out, entries)
        shipped = sorted(entries, key=lambda e: e["id"])
        write_credits(out, shipped)
        write_data_card(out, shipped)
    return list_objects(root=out)


def _build_one(libraries, key, facts, out, size, views, points) -> dict:
    library, number = key.rsplit("/", 1)
    if library not in libraries:
        raise FileNotFoundError(f"{key} ({facts['id']}): there is no {library}.sh3f in the source")
    archive, catalogue, licence = libraries[library]
    if int(number) not in catalogue:
        raise ValueError(f"{key} ({facts['id']}): the catalogue of {library}.sh3f has no model {number}")
    item = catalogue[int(number)]
    try:
        mesh = read_model(archive, item, facts.get("obj_sha256"))
        mesh = normalise(turn(mesh, facts["yaw"]) if facts.get("yaw") else mesh)
        glb = None
        if facts.get("mesh"):
            with tempfile.TemporaryDirectory() as folder:
                save_glb(mesh, Path(folder) / "mesh.glb", max_texture=GLB_TEXTURE, jpeg=True)
                glb = (Path(folder) / "mesh.glb").read_bytes()
        told = {k: facts[k] for k in ("id", "name", "category", "split", "caption") if k in facts}
        told |= dict(licence=facts.get("licence", licence), creator=item.get("creator", ""),
                     source=f"Sweet Home 3D furniture libraries 1.8, {library}.sh3f, model {number}")
        return make_object(mesh, out, told, size, views, points, glb)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{key} ({facts['id']}): {error}") from error


def read_model(archive: zipfile.ZipFile, item: dict, obj_sha256: str | None = None) -> Mesh:
    """One model of a library as Sweet Home 3D shows it (turned, stretched), in centimetres.

    item: its facts from the catalogue. Raises ValueError if the model is missing, damaged, lacks a
    texture, or if the SHA-256 of its .obj does not begin with `obj_sha256`.
    """
    model = item["model"].lstrip("/")
    folder = str(PurePosixPath(model).parent)
    members = [name for name in archive.namelist() if name.startswith(folder + "/") and not name.endswith("/")]
    if model not in members:
        raise ValueError(f"{model} is not in the library")
    with tempfile.TemporaryDirectory() as scratch:
        for name in members:
            if ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name}: a path that leaves its folder")
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
        digest = hashlib.sha256((Path(scratch) / model).read_bytes()).hexdigest()
        if obj_sha256 is not None and not digest.startswith(obj_sha256):
            raise ValueError(f"{model} is another version than listed (SHA-256 {digest[:16]}, wanted {obj_sha256})")
        mesh = load_mesh(Path(scratch) / model)
    if "modelRotation" in item:
        mesh = rotate(mesh, np.array(item["modelRotation"].split(), dtype=np.float64).reshape(3, 3))
    sides = np.array([float(item[side]) for side in ("width", "height", "depth")])
    used = mesh.vertices[np.unique(mesh.faces)]
    extent = used.max(axis=0) - used.min(axis=0)
    return replace(mesh, vertices=mesh.vertices * (sides / np.maximum(extent, 1e-9)))


def turn(mesh: Mesh, degrees: float) -> Mesh:
    """Turn a mesh about the y axis: its +z side goes towards +x for positive degrees.

    >>> turn(Mesh([[0, 0, 1], [0, 1, 0], [1, 0, 0]], [[0, 1, 2]]), 90).vertices[0].round(6).tolist()
    [1.0, 0.0, 0.0]
    """
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return rotate(mesh, [[c, 0, s], [0, 1, 0], [-s, 0, c]])


# --- the source ------------------------------------------------------------------------------


def open_libraries(source: Path, scratch: Path) -> dict[str, tuple[zipfile.ZipFile, dict[int, dict], str]]:
    """Libraries by name: the open zip, its catalogue {i: facts} and its licence. `source` as in `build`.

    Raises FileNotFoundError if there is none, ValueError naming a file that is damaged.
    """
    if not source.exists():
        raise FileNotFoundError(f"source: {source} does not exist")
    if source.suffix == ".deb":
        files = _unpack_deb(source, scratch)
    else:
        files = sorted(source.rglob("*.sh3f")) if source.is_dir() else [source]
    if not files:
        raise FileNotFoundError(f"source: no .sh3f file in {source}")
    libraries = {}
    for file in files:
        try:
            archive = zipfile.ZipFile(file)
            text = archive.read(CATALOGUE).decode("latin-1")
            libraries[file.stem] = (archive, *read_catalogue(text))
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{file}: not a furniture library ({error})") from error
    return libraries


def read_catalogue(text: str) -> tuple[dict[int, dict], str]:
    """A Java properties file of furniture -> ({i: {"name": ..., "model": ..., ...}}, SPDX name of its licence).

    >>> items, licence = read_catalogue("license=Public domain\\nname#1=Caf\\\\u00e9 chair\\nmodel#1=/a/b.obj\\n")
    >>> items, licence
    ({1: {'name': 'Café chair', 'model': '/a/b.obj'}}, 'CC0-1.0')
    """
    items, licence = {}, None
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if key.startswith("#") or not separator:
            continue
        value = value.strip()
        if "\\u" in value:
            value = value.encode("latin-1").decode("unicode_escape")
        name, _, number = key.strip().partition("#")
        if number.isdigit():
            items.setdefault(int(number), {})[name] = value
        elif name == "license":
            licence = value
    if licence is None or not items:
        raise ValueError(f"{CATALOGUE}: names no licence or no models")
    if "public domain" in licence.lower():
        return items, "CC0-1.0"
    if "Attribution 3.0" in licence:
        return items, "CC-BY-3.0-US" if "United States" in licence else "CC-BY-3.0"
    raise ValueError(f"{CATALOGUE}: unknown licence {licence!r}")


def _unpack_deb(file: Path, scratch: Path) -> list[Path]:
    """The .sh3f files of a Debian package. It is an `ar` archive: members with 60-byte headers (name 16
    bytes, ..., size 10 bytes at 48); data.tar.xz is the one that holds the files."""
    content = file.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise ValueError(f"{file}: not a Debian package")
    position, found = 8, []
    while position + 60 <= len(content):
        header = content[position:position + 60]
        name, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            data = io.BytesIO(content[position + 60:position + 60 + size])
            try:
                with tarfile.open(fileobj=data) as tar:
                    for member in tar.getmembers():
                        if member.isfile() and member.name.endswith(".sh3f"):
                            target = scratch / PurePosixPath(member.name).name
                            target.write_bytes(tar.extractfile(member).read())
                            found.append(target)
            except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
                raise ValueError(f"{file}: {name} is damaged ({error})") from error
        position += 60 + size + size % 2
    return sorted(found)


# --- the list --------------------------------------------------------------------------------


def _find_selection(out: Path, selection) -> Path:
    from gsgen_lib.data import data_root

    if selection is not None:
        return Path(selection)
    own = out / "selection.json"
    return own if own.is_file() else data_root() / "selection.json"


def _read_selection(file: Path) -> dict:
    """Read and check selection.json."""
    try:
        selection = json.loads(file.read_text(encoding="utf-8"))
        kept = selection["kept"]
        ids = [facts["id"] for facts in kept.values()]
        if len(set(ids)) != len(ids):
            raise ValueError(f"ids appear twice: {sorted({i for i in ids if ids.count(i) > 1})}")
        wrong = [f["id"] for f in kept.values() if f["split"] not in SPLITS or not f["name"] or not f["category"]]
        if wrong:
            raise ValueError(f"bad split, name or category: {wrong}")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file}: not a valid selection ({error!r})") from error
    return selection
