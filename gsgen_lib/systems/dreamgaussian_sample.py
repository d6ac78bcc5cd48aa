"""gsgen sample dreamgaussian: a prompt or a picture in, Gaussians and a textured mesh out.

    gsgen sample dreamgaussian --prompt "a red mug with white dots" --out runs/mug
    gsgen sample dreamgaussian --image cup.png --out runs/cup

Writes into `out`:

    gaussians.ply       stage 1, for any splat viewer          turntable.gif   both, side by side
    mesh.glb            stage 2, for any 3D program            card.json       seconds, scores, how it was made
    mesh_baked.glb      the mesh before its texture was refined

An interrupted stage 1, called again with the same arguments, goes on where it stopped; mesh and stage 2 take less than a minute
and start again. The texture holds the light that the prior painted: a viewer with lamps shades it twice. Taught in notebook 04.
"""

from __future__ import annotations

import difflib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsgen_lib.data.captioned_views import on_background, without_view
from gsgen_lib.data.glb import save_glb
from gsgen_lib.data.meshes import Material, Mesh
from gsgen_lib.data.objects import list_objects
from gsgen_lib.data.toy_words import COLORS, NOUNS, VOCABULARY
from gsgen_lib.mesh import bake_texture, density_field, extract_mesh, render_texture, texture_rays, unwrap
from gsgen_lib.metrics import check_images
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.ply import save_ply
from gsgen_lib.systems.dream_metrics import around, caption_score
from gsgen_lib.systems.dreamgaussian import DreamConfig, dream
from gsgen_lib.systems.prior import Prior, load_prior
from gsgen_lib.systems.texture_refinement import RefineConfig, refine

FILL = 0.72  # share of the frame that a photographed object fills, as the standard camera sees a toy


@dataclass
class Textured:
    """A mesh, and its texture (S, S, 3) in [0, 1]."""

    mesh: Mesh
    texture: Tensor

    def save(self, path: str | Path) -> None:
        """Write a GLB. ValueError where the texture holds anything but numbers in [0, 1]."""
        check_images("texture", self.texture)
        rgb = (self.texture.detach().cpu() * 255).round().to(torch.uint8).numpy()
        rgba = np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 255, np.uint8)], -1)
        m = self.mesh
        save_glb(Mesh(m.vertices, m.faces, m.uv, materials=[Material(texture=rgba)]), path)


def baking_cameras(size: int = 128) -> Cameras:
    """26 cameras around the object: 8 azimuths at elevations 0, 45 and -45 degrees, and the poles."""
    turns = [45.0 * i for i in range(8)]
    return Cameras.orbit(26, azimuth=[*turns * 3, 0.0, 0.0], elevation=[0.0] * 8 + [45.0] * 8 + [-45.0] * 8 + [89.0, -89.0],
                         width=size, height=size)


@torch.no_grad()
def to_mesh(gaussians: Gaussians, resolution: int = 96, level: float = 0.7, max_faces: int = 10_000,
            texture_size: int = 256) -> Textured:
    """Surface, texture coordinates and baked texture of a scene. EmptyField where it has no surface.

    level: of the density; DreamGaussian's 1 tears holes into thin parts of our few Gaussians.
    """
    g = gaussians.to("cpu")
    mesh = unwrap(*extract_mesh(density_field(g, resolution), level, max_faces), texture_size)
    cameras = baking_cameras()
    out = rasterize(g, cameras)  # on black: premultiplied
    rgba = torch.cat([(out.rgb / out.alpha.clamp_min(1e-4)).clamp(0, 1), out.alpha.clamp(0, 1)], -1)
    return Textured(mesh, bake_texture(mesh, rgba, cameras, texture_size))


def refined(prior: Prior, caption: str, textured: Textured, config: RefineConfig = RefineConfig(),
            generator: torch.Generator | None = None, progress: bool = True) -> Textured:
    """Stage 2 (`texture_refinement.refine`)."""
    texture = refine(prior, caption, textured.mesh, textured.texture, config, prior.size, generator, progress)
    return Textured(textured.mesh, texture.cpu())


@torch.no_grad()
def render_mesh_at(textured: Textured, cameras: Cameras, background: tuple = (1.0, 1.0, 1.0)) -> Tensor:
    """Pictures (V, H, W, 3) of a textured mesh, without light: its texture holds the light already."""
    rays = texture_rays(textured.mesh, cameras, 4)
    return render_texture(textured.texture.cpu(), rays, torch.tensor(background))[0].clamp(0, 1)


def known_words() -> set[str]:
    """Every word, in small letters, of the captions that the shipped prior was trained on."""
    real = {word for meta in list_objects("train") for word in meta["caption"].lower().replace(",", " ").split()}
    return real | set(VOCABULARY)


def made_here(prior: str) -> bool:
    """Whether a prior is the shipped one, or a folder that `gsgen train prior` wrote: then its words are known.

    >>> made_here("prior"), made_here("stable-diffusion-v1-5/stable-diffusion-v1-5")
    (True, False)
    """
    from gsgen_lib.pretrained import read_card

    return prior == "prior" or ((Path(prior) / "card.json").is_file() and read_card(Path(prior)).get("name") == "prior")


def usable_device(name: str | None) -> str:
    """A device that torch knows and this machine has; without a name, the GPU where there is one.

    >>> usable_device("banana")
    Traceback (most recent call last):
    ValueError: device: got 'banana', wanted cpu or cuda
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device: got {name!r}, wanted cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: got {name!r}, but torch finds no CUDA on this machine; wanted cpu")
    return name


def check_prompt(prompt: str, words: set[str]) -> str:
    """The prompt in small letters, without view word and double spaces; ValueError naming the first unknown word and a similar
    known one.

    >>> check_prompt("A  red mug, left side view", {"a", "red", "mug"})
    'a red mug'
    """
    parts = without_view(prompt.lower()).replace(",", " ").split()
    if not parts:
        raise ValueError(f"prompt: got {prompt!r}, wanted words that say what it is")
    for word in parts:
        if word in ("front", "side", "back", "overhead", "view") and word not in words:
            raise ValueError(f"prompt: {word!r} says from where; wanted what it is, since the object is made for all sides")
        if word not in words:
            near = difflib.get_close_matches(word, sorted(words), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"prompt: {word!r} is no word that this prior has learned{hint}")
    return " ".join(parts)


def read_picture(path: str | Path, size: int = 64) -> Tensor:
    """A picture of one object, cut out, squared and scaled like the course's renders: (size, size, 4) in [0, 1].

    Alpha says what the object is; without alpha a plain background is found by its colour. Specks smaller than a hundredth of
    the object do not count for its frame. ValueError for what is no picture, for a background that is not plain, and where
    nothing, or everything, or too thin a thing is object.
    """
    picture = _pixels(path)
    alpha = picture[..., 3]
    if alpha.min() > 0.99:
        picture = _cut_out(picture, path)
    elif alpha.max() - alpha.min() < 0.02:
        raise ValueError(f"image: {path} is transparent everywhere alike (alpha {alpha.max():.2f}); cut the object out first")
    if (picture[..., 3] > 0.5).mean() > 0.97:
        raise ValueError(f"image: {path} is object nearly everywhere by its alpha; cut the object out first")
    inside = without_specks(picture[..., 3] > 0.5)
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError(f"image: {path} is transparent everywhere")
    picture = picture[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    h, w, _ = picture.shape
    x = torch.from_numpy(picture).movedim(-1, 0)[None]
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)  # scaled with premultiplied colours, else the rim turns dark
    fine, longest = 4 * size, FILL * 4 * size  # four times too fine, so that the centre is right to an eighth of a pixel
    new = [max(1, round(longest * n / max(h, w))) for n in (h, w)]
    x = torch.nn.functional.interpolate(x, new, mode="bilinear", antialias=True)
    top, left = (fine - new[0]) // 2, (fine - new[1]) // 2
    x = torch.nn.functional.pad(x, (left, fine - new[1] - left, top, fine - new[0] - top))
    x = torch.nn.functional.avg_pool2d(x, 4)[0].movedim(0, -1)
    if x[..., 3].max() < 0.5:
        raise ValueError(f"image: {path} shows a thing thinner than half a pixel once it is scaled to {size} pixels")
    return torch.cat([x[..., :3] / x[..., 3:].clamp_min(1e-4), x[..., 3:]], -1).clamp(0, 1)


def _pixels(path) -> np.ndarray:
    """A file's picture, upright, as float32 RGBA (H, W, 4) in [0, 1]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)  # telephones store pictures lying, with a note how to turn them
            if upright.mode.startswith("I;16"):  # 16 bits of grey, which Pillow would clip to 8
                grey = np.asarray(upright, np.float32)[..., None] / 65535
                return np.concatenate([grey, grey, grey, np.ones_like(grey)], -1)
            if upright.mode in ("I", "F"):
                raise ValueError(f"its pixels are numbers of any size, mode {upright.mode}; save it with 8 bits")
            return np.asarray(upright.convert("RGBA"), np.float32) / 255
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image: {path} is no picture that can be read ({error})") from error


def without_specks(inside: np.ndarray, least: float = 0.01) -> np.ndarray:
    """The connected parts of a mask (H, W) that have at least `least` of the largest one's pixels.

    >>> mask = np.zeros((20, 20), bool)
    >>> mask[2:14, 2:14] = mask[19, 19] = True
    >>> int(without_specks(mask).sum())
    144
    """
    from scipy.ndimage import label

    parts = label(inside, np.ones((3, 3)))[0]
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return inside & (sizes >= least * sizes.max())[parts]


def _cut_out(picture: np.ndarray, path) -> np.ndarray:
    """Alpha for an opaque picture (H, W, 4) on a plain background: what differs from the border's colour."""
    rgb = picture[..., :3]
    alpha, color, border = off_background(rgb)
    if np.quantile(np.abs(border - color).max(1), 0.9) > 0.06:
        raise ValueError(f"image: {path} has neither alpha nor a plain background; cut the object out first")
    if np.abs(rgb - color).max() < 0.1:
        raise ValueError(f"image: {path} is of one colour: nothing stands out")
    return np.concatenate([rgb, alpha[..., None]], -1)


def off_background(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of an opaque picture (H, W, 3): alpha (H, W), 0 up to a difference of .05 from the background's colour, 1 from .15 on; that
    colour (3,), the median of the border; the border (N, 3). What has nearly this colour becomes half transparent.

    >>> picture = np.ones((5, 5, 3), np.float32)
    >>> picture[2, 2] = 0
    >>> float(off_background(picture)[0].sum())
    1.0
    """
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    color = np.median(border, 0)
    return np.clip((np.abs(rgb - color).max(-1) - 0.05) / 0.1, 0, 1), color, border


def guess_caption(picture: Tensor, scorer) -> str:
    """The toy or training object whose caption the prompt scorer finds nearest to a picture (H, W, 4)."""
    captions = [f"{'an' if c[0] in 'aeiou' else 'a'} {c} {n}" for c in COLORS for n in NOUNS]
    captions += sorted({meta["caption"] for meta in list_objects("train")})
    white = on_background(picture, picture.new_ones(3))
    return captions[int((scorer.embed_mirrored(white[None]) @ scorer.embed_prompts(captions).T).argmax())]


def sample_dreamgaussian(prompt: str = "", image: Path | None = None, out: Path = Path("runs/dreamgaussian"), seed: int = 0,
                         elevation: float = 15.0, steps: int | None = None, prior: str = "prior",
                         device: str | None = None) -> dict:
    """Turn a prompt, a picture, or both into Gaussians and a textured mesh (the header lists the files).

    prompt: what it is, without view word; with a picture alone it is guessed by the prompt scorer, and printed;
    elevation: from how high the picture was taken, degrees; steps: of stage 1, instead of the preset's; prior: a shipped
    name, a pipeline folder or a Stable Diffusion of the hub; device: "cpu" keeps off the GPU.
    """
    from gsgen_lib.systems.prompt_scorer import load_scorer
    from gsgen_lib.viz.animations import save_animation

    if not prompt and image is None:
        raise ValueError("prompt, image: got neither")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: got {seed}, wanted 0 to 2^63 - 1")
    if not -90 <= elevation <= 90:
        raise ValueError(f"elevation: got {elevation}, wanted -90 to 90 degrees")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: got {out}, which is a file, wanted a folder")
    if prompt and made_here(prior):
        prompt = check_prompt(prompt, known_words())
    device = usable_device(device)
    painter, judge = load_prior(prior, device), load_scorer(device=device)
    picture = None if image is None else read_picture(image, painter.size)
    if not prompt:
        prompt = guess_caption(picture.to(device), judge)
        print(f"the picture looks like: {prompt}")
    asked = {"prompt": prompt, "image": str(image) if image else None, "seed": seed}
    _not_another(out, asked)
    config = DreamConfig(size=painter.size) if steps is None else DreamConfig(size=painter.size, steps=steps)

    start = time.perf_counter()
    found = dream(painter, prompt, config, picture=picture, elevation=elevation,
                  generator=torch.Generator().manual_seed(seed), folder=out)
    first = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    scene = found.gaussians.to("cpu")
    save_ply(scene, out / "gaussians.ply")
    baked = to_mesh(scene)
    baked.save(out / "mesh_baked.glb")
    final = refined(painter, prompt, baked, generator=torch.Generator().manual_seed(seed))
    final.save(out / "mesh.glb")
    second = time.perf_counter() - start - first
    ring = around(24)
    both = rasterize(scene, ring, (1.0, 1.0, 1.0)).rgb.clamp(0, 1), render_mesh_at(final, ring)  # (24, H, W, 3) each
    save_animation(torch.cat(both, 2), out / "turntable.gif", seconds=2.4)
    cosines = {name: round(caption_score(judge, x, prompt), 3) for name, x in zip(("gaussians", "mesh"), both, strict=True)}
    card = {**asked, "prior": painter.name,
            "seconds": {"gaussians": round(first, 1), "mesh and texture": round(second, 1)},
            "gaussians": scene.num, "triangles": len(final.mesh.faces), "judge": judge.name,
            "cosine to the prompt": cosines, "config": asdict(config)}
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(f"{out}: {card['gaussians']} Gaussians in {first:.0f} s, {card['triangles']} triangles in {second:.0f} s more")
    return card


def _not_another(out: Path, asked: dict) -> None:
    """ValueError where the folder holds the finished object of another prompt, picture or seed."""
    if not (out / "card.json").is_file():
        return
    try:
        there = json.loads((out / "card.json").read_text(encoding="utf-8"))
        different = [key for key in asked if there.get(key) != asked[key]]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"out: {out}/card.json is damaged ({error}); take another folder") from error
    if different:
        key = different[0]
        raise ValueError(f"out: {out} holds the object of {key} {there.get(key)!r}, wanted {asked[key]!r}; take another folder")
