"""Every option of rasterize, each engine against the dense oracle or a closed form, and what autograd keeps."""

import math

import oracle as dense
import pytest
import torch

from gsgen_lib.raster import rasterize
from gsgen_lib.raster.numba_setup import run_parallel, set_num_threads
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

ENGINES = pytest.mark.parametrize("engine", ["numba", "reference"])
FIELDS = ("means", "quats", "scales", "opacities", "colors")
FRONT = Cameras.look_at(torch.tensor([[0.0, 0, 1.8]]), width=32, height=24)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def ball(n=60, seed=1, **more):
    return Gaussians.random(n, scale=0.06, generator=gen(seed), **more)


def truth(g, cams, v=0):
    """rgb, alpha, depth sum of the oracle; and where its decisions are safe."""
    x = [getattr(g, f).double() for f in FIELDS]
    return dense.render_one(*x, cams.viewmats[v].double(), cams.Ks[v].double(), cams.width, cams.height)


@ENGINES
def test_near_and_far_and_eps2d_are_obeyed(engine, monkeypatch):
    g = ball()
    default = truth(g, FRONT)[0]
    for names, options in ((("NEAR", "FAR"), {"near": 1.7, "far": 1.95}), (("EPS2D",), {"eps2d": 4.0})):
        for name in names:
            monkeypatch.setattr(dense, name, options[name.lower()])
        rgb, alpha, depth, margin = truth(g, FRONT)
        out = rasterize(g, FRONT, engine=engine, depth_mode="D", **options)
        sure = margin > 2e-5
        assert (out.rgb[0] - rgb).abs().amax(-1)[sure].max() < 1e-4 and (out.depth[0, ..., 0] - depth).abs()[sure].max() < 3e-4
        assert (rgb - default).abs().max() > 0.05  # the option does matter here
        monkeypatch.undo()


@ENGINES
def test_radius_clip_drops_splats_small_in_both_directions_only(engine):
    means = torch.tensor([[-0.4, 0.0, 0.0], [0.0, 0.0, 0.0], [0.4, 0.0, 0.0]])
    scales = torch.tensor([[0.01, 0.01, 0.01], [0.01, 0.2, 0.01], [0.2, 0.2, 0.2]])  # small, tall, large
    g = Gaussians(means, torch.tensor([1.0, 0, 0, 0]).repeat(3, 1), scales, torch.full((3,), 0.8), torch.rand(3, 3))
    radii = rasterize(g, FRONT, engine=engine).info.radii[0]
    assert (radii[1, 0] <= 4 < radii[1, 1]) and bool((radii[0] <= 4).all())
    kept = rasterize(g, FRONT, engine=engine, radius_clip=4.0).info.radii[0]
    assert kept[0].tolist() == [0, 0] and torch.equal(kept[1:], radii[1:])


@ENGINES
def test_radii_are_those_of_the_formula(engine):
    """ceil(sqrt(2 ln(255 opacity)) sqrt(variance)) along each axis, for splats on the optical axis."""
    for opacity in (0.02, 0.3, 1.0):
        g = Gaussians(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.1, 0.05, 0.02]]),
                      torch.tensor([opacity]), torch.rand(1, 3))
        focal = FRONT.Ks[0, 0, 0].item() / 1.8
        reach = math.sqrt(2 * math.log(255 * opacity))
        wanted = [math.ceil(reach * math.sqrt((s * focal) ** 2 + 0.3)) for s in (0.1, 0.05)]
        assert rasterize(g, FRONT, engine=engine).info.radii[0, 0].tolist() == wanted


@ENGINES
def test_expected_depth_is_the_sum_divided_by_alpha(engine):
    g = ball(300)
    _, alpha, depth, margin = truth(g, FRONT)
    out = rasterize(g, FRONT, engine=engine, depth_mode="ED")
    sure = (margin > 2e-5) & (alpha > 0.01)
    assert (out.depth[0, ..., 0] - depth / alpha)[sure].abs().max() < 1e-3
    assert (depth - depth / alpha)[sure].abs().max() > 0.1  # D is another picture
    thin = (alpha > 0) & (alpha < 0.1)
    assert thin.any() and out.depth[0, ..., 0][thin & (margin > 2e-5)].min() > 1.0  # no floor under alpha but a tiny one
    assert (out.depth[0, ..., 0][alpha == 0] == 0).all()


@ENGINES
def test_backgrounds_per_view_and_per_scene(engine):
    cams = Cameras.orbit(3, width=16, height=12)
    empty = Gaussians.random(0)
    per_view = torch.rand(3, 3, generator=gen())
    out = rasterize(empty, cams, per_view, engine)
    assert torch.equal(out.rgb, per_view[:, None, None].expand(3, 12, 16, 3))
    pair = Gaussians.random(5, batch=(3,), generator=gen())
    three = Cameras.stack([cams, cams, cams])
    per_scene = torch.rand(3, 1, 3, generator=gen(1))
    both = rasterize(pair, three, per_scene, engine)
    for b in range(3):
        one = rasterize(Gaussians(*(getattr(pair, f)[b] for f in FIELDS)), cams, per_scene[b, 0], engine)
        torch.testing.assert_close(both.rgb[b], one.rgb)
    with pytest.raises(ValueError, match=r"wanted \(B, 1, 3\) for each scene or \(1, V, 3\) for each view"):
        rasterize(pair, three, per_scene[:, 0], engine)


@ENGINES
def test_the_direction_of_harmonics_is_from_the_camera_to_the_splat(engine):
    """Band 1 of the original code is (-y, z, -x): seen from +z the direction is -z, so the colour falls."""
    colors = torch.zeros(1, 4, 3)
    colors[0, 2] = 0.5
    g = Gaussians(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.3), torch.ones(1), colors)
    cams = Cameras.orbit(2, elevation=0.0, width=9, height=9)  # from +z, from -z
    out = rasterize(g, cams, engine=engine)
    ratio = (out.rgb[:, 4, 4, 0] / out.alpha[:, 4, 4, 0]).tolist()
    change = math.sqrt(3 / (4 * math.pi)) * 0.5
    assert ratio == pytest.approx([0.5 - change, 0.5 + change], abs=1e-5)


@ENGINES
def test_intrinsics_that_are_not_finite_are_refused(engine):
    bad = FRONT.Ks.clone()
    bad[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="^Ks: got 1 non-finite"):
        rasterize(ball(), Cameras(FRONT.viewmats, bad, 32, 24), engine=engine)


@ENGINES
@pytest.mark.parametrize("batch, views", [(0, 2), (2, 0)])
def test_no_scenes_or_no_views_give_no_pictures(engine, batch, views):
    g = Gaussians.random(5, batch=(2,), generator=gen())
    g = Gaussians(*(getattr(g, f)[:batch] for f in FIELDS))
    cams = Cameras.orbit(2, width=8, height=6)
    cams = Cameras(cams.viewmats[:views], cams.Ks[:views], 8, 6)
    assert rasterize(g, cams, engine=engine).rgb.shape == (batch, views, 6, 8, 3)


@ENGINES
@pytest.mark.parametrize("field", ["opacities", "colors", "scales", "quats"])
def test_growth_statistics_do_not_need_gradients_of_the_means(engine, field):
    g, cams = ball(), Cameras.orbit(2, width=20, height=16)
    norms = []
    for wanted in (field, "means"):
        x = {f: getattr(g, f).clone().requires_grad_(f == wanted) for f in FIELDS}
        out = rasterize(Gaussians(**x), cams, engine=engine)
        (out.rgb * torch.linspace(0, 1, 20)[:, None]).sum().backward()
        norms.append(out.info.grad_norm2d)
    torch.testing.assert_close(norms[0], norms[1])
    assert norms[0].max() > 0


def test_inputs_changed_in_place_before_backward_are_noticed():
    g = ball()
    means = g.means.clone().requires_grad_()
    out = rasterize(Gaussians(means, g.quats, g.scales, g.opacities, g.colors), FRONT, engine="numba")
    with torch.no_grad():
        means.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.rgb.sum().backward()


def test_pictures_changed_in_place_do_no_harm():
    gradients = []
    for harm in (False, True):
        g = ball()
        opacities = g.opacities.clone().requires_grad_()
        out = rasterize(Gaussians(g.means, g.quats, g.scales, opacities, g.colors), FRONT, engine="numba", depth_mode="D")
        if harm:
            with torch.no_grad():
                out.rgb.zero_()
                out.alpha.zero_()
        (out.rgb.sum() + out.depth.sum()).backward()
        gradients.append(opacities.grad)
    assert torch.equal(*gradients)


def test_what_backward_needs_is_freed_after_it():
    g = ball()
    means = g.means.clone().requires_grad_()
    out = rasterize(Gaussians(means, g.quats, g.scales, g.opacities, g.colors), FRONT, engine="numba")
    out.rgb.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.rgb.sum().backward()


def test_far_from_the_origin_and_far_crops_keep_their_precision():
    """Pixel positions of 30,000 and world offsets of 1,000 need float64 in the projection."""
    g = ball(40)
    crop = FRONT.Ks.clone()
    crop[0, 0, 0] = crop[0, 1, 1] = 3e4
    crop[0, 0, 2], crop[0, 1, 2] = 16 - 3e4 * 0.1 / 1.8, 12.0
    small = Gaussians(g.means * 1e-3 + torch.tensor([0.1, 0, 0]), g.quats, g.scales * 1e-3, g.opacities, g.colors)
    for scene, cams in ((small, Cameras(FRONT.viewmats, crop, 32, 24)),
                        (g.transform(translation=torch.tensor([1000.0, 0, 0])),
                         Cameras.look_at(torch.tensor([[1000.0, 0, 1.8]]), target=(1000.0, 0.0, 0.0), width=32, height=24))):
        rgb, _, _, margin = truth(scene, cams)
        assert rgb.max() > 0.3
        error = (rasterize(scene, cams, engine="numba").rgb[0] - rgb).abs().amax(-1)[margin > 2e-5]
        assert error.max() < 1e-4


def test_radii_beyond_integers_are_clamped():
    g = Gaussians(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 1e9), torch.tensor([0.5]),
                  torch.full((1, 3), 0.7))
    out = rasterize(g, FRONT, engine="numba")
    assert out.info.radii[0, 0].tolist() == [2**30, 2**30]
    assert (out.alpha - 0.5).abs().max() < 1e-6


def test_errors_of_helper_threads_come_through():
    def fail(i):
        raise KeyError(i)

    set_num_threads(2)
    try:
        with pytest.raises(KeyError):
            run_parallel(fail, [(i,) for i in range(50)])

        import threading

        caller = threading.get_ident()
        ran = threading.Event()

        def fail_elsewhere(i):
            if threading.get_ident() != caller:
                ran.set()
                raise KeyError(i)
            ran.wait(5)  # leave a task for the helper

        with pytest.raises(KeyError):
            run_parallel(fail_elsewhere, [(i,) for i in range(4)])
    finally:
        set_num_threads(None)
