"""Textures as files hold them: more than 8 bits a channel, coordinates that are no numbers, what is no plain file."""

import os

import numpy as np
import pytest
from PIL import Image

from gsgen_lib.data.meshes import load_mesh

OBJ = """mtllib m.mtl
v 0 0 0
v 1 0 0
v 0 1 0
vt 0.25 0.5
vt {corner}
vt 0.75 1
usemtl a
f 1/1 2/2 3/3
"""


def write_obj(folder, picture, corner="1 0", name="t.tif"):
    if picture is not None:
        picture.save(folder / name)
    (folder / "m.mtl").write_text(f"newmtl a\nmap_Kd {name}\n")
    (folder / "m.obj").write_text(OBJ.format(corner=corner))
    return folder / "m.obj"


def test_textures_of_16_bits_keep_their_brightness_and_32_bits_are_refused(tmp_path):
    grey = np.array([[0, 30000], [45000, 65535]], np.uint16)
    for name in ("t.tif", "t.png"):
        texture = load_mesh(write_obj(tmp_path, Image.fromarray(grey), name=name)).materials[0].texture
        assert np.abs(texture[..., :3] / 255 - grey[..., None] / 65535).max() < 0.51 / 255
        assert (texture[..., 3] == 255).all()
    for dtype, mode in ((np.int32, "I"), (np.float32, "F")):
        with pytest.raises(ValueError, match=f"m.obj.*mode {mode} "):
            load_mesh(write_obj(tmp_path, Image.fromarray(grey.astype(dtype))))


def test_texture_coordinates_that_are_no_numbers_become_zero(tmp_path):
    picture = Image.new("RGB", (2, 2))
    for corner in ("nan 0.5", "inf 0.5", "-inf 0.5"):
        uv = load_mesh(write_obj(tmp_path, picture, corner=corner)).uv
        assert sorted(uv.reshape(-1, 2).tolist()) == [[0, 0.5], [0.25, 0.5], [0.75, 1]]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of Unix")
def test_a_pipe_is_no_texture(tmp_path):
    """Reading from a pipe to which nobody writes would wait for ever."""
    os.mkfifo(tmp_path / "t.tif")
    with pytest.raises(ValueError, match="t.tif"):
        load_mesh(write_obj(tmp_path, None))
