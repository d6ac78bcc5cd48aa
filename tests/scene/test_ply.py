"""PLY: exact round trip, the layout of the original code, and refusal of damaged files."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.ply import load_ply, save_ply


def scene(degree=None, n=50):
    return Gaussians.random(n, sh_degree=degree, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_round_trip(tmp_path, degree):
    g = scene(degree)
    back = load_ply(save_ply(g, tmp_path / "s.ply"), colors="rgb" if degree is None else "sh")
    for name in ("means", "quats", "scales", "opacities", "colors"):
        torch.testing.assert_close(getattr(back, name), getattr(g, name), atol=1e-6, rtol=0)


def test_ends_of_the_ranges_and_empty_scenes(tmp_path):
    g = scene(n=3)
    g.opacities[:] = torch.tensor([0.0, 1.0, 0.5])
    g.scales[0] = 0.0
    back = load_ply(save_ply(g, tmp_path / "s.ply"))
    torch.testing.assert_close(back.opacities, g.opacities, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.scales, g.scales, atol=1e-6, rtol=0)
    assert load_ply(save_ply(scene(n=0), tmp_path / "empty.ply")).num == 0


def test_layout_is_that_of_the_original_code(tmp_path):
    g = scene(1)
    v = PlyData.read(str(save_ply(g, tmp_path / "s.ply")))["vertex"]
    names = [p.name for p in v.properties]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:18] == [f"f_rest_{i}" for i in range(9)]
    assert names[18:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert all(p.val_dtype == "f4" for p in v.properties)
    np.testing.assert_allclose(v["f_rest_3"], g.colors[:, 1, 1], atol=1e-6)  # channel-major: green of the first band
    np.testing.assert_allclose(v["f_rest_1"], g.colors[:, 2, 0], atol=1e-6)
    np.testing.assert_allclose(v["scale_2"], g.scales[:, 2].log(), atol=1e-5)
    np.testing.assert_allclose(v["opacity"], torch.logit(g.opacities), atol=1e-4)


def rewrite(path, change):
    v = PlyData.read(str(path), mmap=False)["vertex"].data
    PlyData([PlyElement.describe(change(v), "vertex")]).write(str(path))
    return path


def drop(name):
    return lambda v: np.array(v[[n for n in v.dtype.names if n != name]].tolist(),
                              dtype=[d for d in v.dtype.descr if d[0] != name])


def set_first(name, value):
    def change(v):
        v = v.copy()
        v[name][0] = value
        return v
    return change


def retype(name, to):
    return lambda v: v.astype([(n, to if n == name else t) for n, t in v.dtype.descr])


@pytest.mark.parametrize("change,message", [
    (drop("opacity"), r"\['opacity'\] are missing"), (drop("f_rest_4"), "8 f_rest"),
    (retype("scale_1", "i4"), "scale_1 has type"), (set_first("x", np.nan), "property x has 1 non-finite"),
    (set_first("rot_0", np.inf), "rot_0 has 1 non-finite"), (set_first("scale_0", 1000.0), "scales: got 1 non-finite")])
def test_damaged_contents_are_refused_by_name(tmp_path, change, message):
    path = rewrite(save_ply(scene(1), tmp_path / "s.ply"), change)
    with pytest.raises(ValueError, match=message) as error:
        load_ply(path)
    assert "s.ply" in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    data = save_ply(scene(n=4), tmp_path / "s.ply").read_bytes()
    for keep in [0, 3, 10, 100, data.index(b"end_header"), data.index(b"end_header") + 11, len(data) - 50, len(data) - 1]:
        (tmp_path / "cut.ply").write_bytes(data[:keep])
        with pytest.raises(ValueError, match="damaged, truncated or not a PLY"):
            load_ply(tmp_path / "cut.ply")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"\x89PNG\r\n" + bytes(range(256)))
    with pytest.raises(ValueError, match="not a PLY"):
        load_ply(tmp_path / "a.ply")
    with pytest.raises(FileNotFoundError):
        load_ply(tmp_path / "none.ply")
    cloud = np.zeros(3, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
    PlyData([PlyElement.describe(cloud, "vertex")]).write(str(tmp_path / "cloud.ply"))
    with pytest.raises(ValueError, match="3DGS scene, or a plain mesh"):
        load_ply(tmp_path / "cloud.ply")
    with pytest.raises(ValueError, match="degree > 0"):
        load_ply(save_ply(scene(2), tmp_path / "sh.ply"), colors="rgb")


def test_invalid_scenes_are_not_written(tmp_path):
    g = scene()
    g.means[0, 0] = float("nan")
    with pytest.raises(ValueError, match="means"):
        save_ply(g, tmp_path / "s.ply")
    with pytest.raises(ValueError, match="batch"):
        save_ply(Gaussians.stack([scene(), scene()]), tmp_path / "s.ply")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [dict(text=True), dict(text=False, byte_order=">"), dict(text=False, byte_order="<")])
def test_ascii_and_both_byte_orders_give_the_same_scene(tmp_path, how):
    g = scene(1)
    v = PlyData.read(str(save_ply(g, tmp_path / "s.ply")), mmap=False)["vertex"].data
    PlyData([PlyElement.describe(v, "vertex")], **how).write(str(tmp_path / "other.ply"))
    want, got = load_ply(tmp_path / "s.ply"), load_ply(tmp_path / "other.ply")
    for name in ("means", "quats", "scales", "opacities", "colors"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), atol=1e-6, rtol=1e-6)


def test_binary_files_are_not_read_number_by_number(tmp_path, monkeypatch):
    """plyfile's slow path takes half a minute for a large scene; big files must go past it."""
    path = save_ply(scene(3), tmp_path / "s.ply")
    monkeypatch.setattr(PlyElement, "_read_bin", lambda *a: pytest.fail("read number by number"))
    assert load_ply(path).num == 50


def test_the_file_is_let_go(tmp_path):
    path = save_ply(scene(), tmp_path / "s.ply")
    gc.disable()  # freed by the end of the function, not by luck
    try:
        kept = load_ply(path)
        if sys.platform == "linux":
            mapped = Path("/proc/self/maps").read_text()
            assert str(path) not in mapped
    finally:
        gc.enable()
    path.unlink()
    kept.validate()


def test_a_list_among_the_properties_is_refused_by_name(tmp_path):
    path = save_ply(scene(n=2), tmp_path / "s.ply")
    table = PlyData.read(str(path), mmap=False)["vertex"].data
    lists = np.empty(2, dtype=[(n, "O" if n == "opacity" else t) for n, t in table.dtype.descr])
    for name in table.dtype.names:
        lists[name] = [np.array([x], "f4") for x in table[name]] if name == "opacity" else table[name]
    PlyData([PlyElement.describe(lists, "vertex", val_types={"opacity": "f4"})]).write(str(path))
    with pytest.raises(ValueError, match="opacity has type list"):
        load_ply(path)


@pytest.mark.parametrize("field,value", [("means", 1e300), ("quats", 1e-42), ("colors", 3e38), ("scales", 1e39)])
def test_what_float32_cannot_hold_is_not_written(tmp_path, field, value):
    g = scene().to(torch.float64)
    getattr(g, field)[4] = value
    g.validate()
    with pytest.raises(ValueError, match="gaussians: do not fit into float32"):
        save_ply(g, tmp_path / "s.ply")
    assert list(tmp_path.iterdir()) == []


def test_normals_are_zero_and_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    v = PlyData.read(str(save_ply(scene(), tmp_path / "s.ply")), mmap=False)["vertex"]
    assert all((v[name] == 0).all() for name in ("nx", "ny", "nz"))

    def refuse(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_ply(scene(), tmp_path / "other.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["s.ply"]


def test_opaque_and_empty_gaussians_are_written_as_finite_logits(tmp_path):
    g = Gaussians.random(3)
    g = Gaussians(g.means, g.quats, g.scales, torch.tensor([0.0, 0.5, 1.0]), g.colors)
    save_ply(g, tmp_path / "ends.ply")
    raw = np.asarray(PlyData.read(tmp_path / "ends.ply")["vertex"]["opacity"], dtype=np.float64)
    np.testing.assert_allclose(raw, [-np.log(1 / 5e-7 - 1), 0.0, np.log(1 / 5e-7 - 1)], atol=0.2)  # float32 near 1
    assert (load_ply(tmp_path / "ends.ply").opacities - g.opacities).abs().max() < 1e-6
