"""Prompts and pictures from outside, the mesh stage, and the command from end to end with a tiny prior."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.objects import list_objects, load_object
from gsgen_lib.mesh import EmptyField
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.ply import load_ply
from gsgen_lib.systems import dreamgaussian_sample
from gsgen_lib.systems.dreamgaussian_sample import (
    FILL,
    baking_cameras,
    check_prompt,
    guess_caption,
    known_words,
    read_picture,
    sample_dreamgaussian,
    to_mesh,
)
from gsgen_lib.systems.prompt_scorer import load_scorer


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- prompts


def test_prompts_of_known_words_pass_and_others_are_named():
    words = known_words()
    for meta in list_objects("train"):
        assert check_prompt(meta["caption"], words)
    for prompt in ("A red  mug, side view", "a red mug, Left Side View", "a red mug overhead view"):
        assert check_prompt(prompt, words) == "a red mug"
    for prompt, message in (("a red mugg", "'mugg' is no word .* mean 'mug'"), ("a xyzzy", "'xyzzy' is no word that this prior has learned$"),
                            (" , ", "wanted words"),
                            ("a red mug front", "'front' says from where")):
        with pytest.raises(ValueError, match=message):
            check_prompt(prompt, words)


# ---- pictures


def square(path, size=(90, 60), box=(20, 10, 50, 40), color=(200, 30, 30), mode="RGBA", background=(255, 255, 255)):
    """A plain rectangle in a picture, with alpha or on a plain background."""
    w, h = size
    rgba = np.zeros((h, w, 4), np.uint8)
    rgba[..., :3] = background if mode == "RGB" else 0
    x0, y0, x1, y1 = box
    rgba[y0:y1, x0:x1] = (*color, 255)
    Image.fromarray(rgba if mode == "RGBA" else rgba[..., :3]).save(path)
    return path


@pytest.mark.parametrize("mode,size,box", [("RGBA", (90, 60), (20, 10, 50, 40)), ("RGB", (91, 60), (5, 10, 35, 40)),
                                           ("RGBA", (300, 200), (0, 0, 300, 200)), ("RGBA", (13, 17), (2, 3, 9, 10))])
def test_an_object_is_cut_out_centred_and_scaled(tmp_path, mode, size, box):
    if mode == "RGBA" and box[2] - box[0] == size[0]:
        path = tmp_path / "disc.png"  # fills its picture: a disc with alpha around it
        y, x = np.mgrid[:200, :300]
        inside = ((x - 150) / 150) ** 2 + ((y - 100) / 100) ** 2 < 1
        Image.fromarray(np.dstack([np.full((200, 300), 200), np.full((200, 300), 30), np.full((200, 300), 30),
                                   255 * inside]).astype(np.uint8)).save(path)
    else:
        path = square(tmp_path / "picture.png", size, box, mode=mode)
    picture = read_picture(path)
    alpha = picture[..., 3]
    assert picture.shape == (64, 64, 4) and 0 <= picture.min() and picture.max() <= 1
    rows, columns = ((alpha > 0.5).any(k).nonzero()[:, 0] for k in (1, 0))
    longest = max(len(rows), len(columns))
    assert abs(longest / 64 - FILL) < 0.05 and abs(rows.float().mean() - 31.5) <= 1.1 and abs(columns.float().mean() - 31.5) <= 1.1
    inside = picture[..., :3][alpha > 0.9]
    assert (inside * 255 - torch.tensor([200.0, 30, 30])).abs().max() < 3  # the rim is not darkened either


def test_pictures_that_cannot_be_cut_out_are_refused_with_the_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(np.zeros((40, 40, 4), np.uint8)).save(tmp_path / "nothing.png")
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "plain.png")
    nearly = np.full((40, 40, 4), 150, np.uint8)
    nearly[0, :5, 3] = 0
    Image.fromarray(nearly).save(tmp_path / "all.png")
    (tmp_path / "text.png").write_text("hello")
    for name, message in (("noise.png", "neither alpha nor a plain background"), ("nothing.png", "transparent everywhere"),
                          ("plain.png", "nothing stands out"), ("all.png", "object nearly everywhere"), ("text.png", "no picture that can be read"),
                          ("missing.png", "no picture that can be read")):
        with pytest.raises(ValueError, match=message):
            read_picture(tmp_path / name)


def test_a_photograph_that_lies_on_its_side_is_turned(tmp_path):
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[10:30, 10:50] = (200, 30, 30, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(rgba).save(tmp_path / "lying.png", exif=exif)
    alpha = read_picture(tmp_path / "lying.png")[..., 3] > 0.5
    assert alpha.any(1).sum() > 1.7 * alpha.any(0).sum()  # now it is tall


def test_a_course_render_comes_back_as_it_was(tmp_path):
    """A real held-out view, saved with alpha: cut out and scaled again it stays about the same."""
    images = load_object(list_objects("val")[0]["id"]).images[0]
    Image.fromarray(images).save(tmp_path / "view.png")
    again = read_picture(tmp_path / "view.png")
    ys, xs = np.nonzero(images[..., 3] > 127)
    assert abs(again[..., 3].mean().item() / (images[..., 3].mean() / 255) - (64 * FILL / max(np.ptp(ys) + 1, np.ptp(xs) + 1)) ** 2) < 0.15


def test_captions_are_guessed_from_pictures():
    from gsgen_lib.data.captioned_views import toy_views

    views, judge, right = toy_views(12, np.random.default_rng(9), sets=1, overhead=0), load_scorer(), 0
    for row in views.sets[:, 0].tolist():
        picture = views.images[row].float() / 255
        noun = guess_caption(picture, judge).split()[-1]
        right += noun in views.captions[row].split()
    assert right >= 7  # chance would be one
    assert on_background(views.images[:1], torch.ones(1, 3)).shape == (1, 64, 64, 3)


# ---- the mesh stage


def shell(n=1500):
    """Gaussians on a sphere, red where x > 0, blue elsewhere."""
    p = torch.nn.functional.normalize(torch.randn(n, 3, generator=gen()), dim=1) * 0.3
    colors = torch.where(p[:, :1] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9]))
    return Gaussians(p, torch.tensor([1.0, 0, 0, 0]).repeat(n, 1), torch.full((n, 3), 0.03), torch.full((n,), 0.9), colors)


def test_a_shell_becomes_a_mesh_with_its_colours(tmp_path):
    made = to_mesh(shell(), resolution=48, texture_size=128)
    path = tmp_path / "mesh.glb"
    made.save(path)
    loaded = trimesh.load(path, force="mesh")
    assert trimesh.Trimesh(made.mesh.vertices, made.mesh.faces, process=False).is_watertight
    colors = loaded.visual.to_color().vertex_colors[:, :3].astype(float) / 255
    right, left = loaded.vertices[:, 0] > 0.1, loaded.vertices[:, 0] < -0.1
    assert colors[right].mean(0)[0] > 0.6 > 0.4 > colors[right].mean(0)[2] and colors[left].mean(0)[2] > 0.6
    with pytest.raises(EmptyField, match="too transparent or too few"):
        to_mesh(replace(shell(), opacities=torch.full((1500,), 0.006)), resolution=24)


def test_baking_cameras_stand_all_around():
    centers = torch.nn.functional.normalize(baking_cameras().centers, dim=1)
    assert len(centers) == 26 and (centers @ torch.nn.functional.normalize(torch.randn(3, 500, generator=gen()), dim=0)).amax(0).min() > 0.85


# ---- the command


def test_the_command_writes_all_its_files_and_refuses_another_seed(tmp_path, monkeypatch):
    """With a prior whose opinion is one colour, so that there is a surface after a few steps."""
    from tests.systems.test_dreamgaussian import OneColour

    prior = OneColour()
    prior.size, prior.name = 32, "one colour"
    monkeypatch.setattr(dreamgaussian_sample, "load_prior", lambda name, device: prior)
    out = tmp_path / "thing"
    card = sample_dreamgaussian("a red mug", out=out, steps=100, device="cpu")
    assert {p.name for p in out.iterdir()} >= {"gaussians.ply", "mesh.glb", "mesh_baked.glb", "card.json", "turntable.gif"}
    scene = load_ply(out / "gaussians.ply")
    assert scene.num == card["gaussians"] and torch.isfinite(rasterize(scene, Cameras.orbit(1, width=32, height=32)).rgb).all()
    with Image.open(out / "turntable.gif") as file:
        assert file.n_frames == 24 and file.size == (128, 64)
    assert json.loads((out / "card.json").read_text())["judge"].startswith("prompt scorer")
    again = sample_dreamgaussian("a red mug", out=out, steps=100, device="cpu")
    assert again["gaussians"] == card["gaussians"] and again["seconds"]["gaussians"] < 2  # stage 1 was finished
    with pytest.raises(ValueError, match="holds the object of seed 0, wanted 1"):
        sample_dreamgaussian("a red mug", out=out, steps=100, seed=1, device="cpu")
    with pytest.raises(ValueError, match="holds the object of prompt 'a red mug', wanted 'a blue mug'"):
        sample_dreamgaussian("a blue mug", out=out, steps=100, device="cpu")
    (out / "card.json").write_text("[]")
    with pytest.raises(ValueError, match="card.json is damaged"):
        sample_dreamgaussian("a red mug", out=out, steps=100, device="cpu")
    (out / "card.json").unlink()  # as after an interruption: the checkpoint of stage 1 knows whose it is
    with pytest.raises(ValueError, match="belongs to a run with generator="):
        sample_dreamgaussian("a red mug", out=out, steps=100, seed=1, device="cpu")


def test_the_command_line_names_an_unknown_word(tmp_path):
    done = subprocess.run([sys.executable, "-m", "gsgen_lib.cli", "sample", "dreamgaussian", "--prompt", "a red mugg", "--out", str(tmp_path)],
                          capture_output=True, text=True)
    assert done.returncode != 0 and "'mugg' is no word" in done.stderr and "Traceback" not in done.stderr
