"""The three engines against a dense float64 oracle, gsplat's own PyTorch functions, and finite differences."""

import pytest
import torch

from gsgen_lib.raster import rasterize
from gsgen_lib.raster.projection import project
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.scene.sh import eval_sh
from oracle import render_one

FIELDS = ("means", "quats", "scales", "opacities", "colors")
RAZOR = 2e-5  # pixels where a yes/no decision is closer than this (relatively) are left out of value checks


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def one_splat(**change):
    fields = dict(means=[[0.0, 0.0, 0.0]], quats=[[0.9, 0.1, 0.3, -0.2]], scales=[[0.1, 0.06, 0.03]], opacities=[0.8],
                  colors=[[0.9, 0.4, 0.1]])
    return Gaussians(**{k: torch.tensor(v) for k, v in {**fields, **change}.items()})


def edge_cases():
    """name -> (gaussians, cameras)."""
    cams = Cameras.orbit(2, elevation=20.0, width=40, height=28)  # not square, and no multiple of any tile size
    g = Gaussians.random(60, scale=0.05, generator=gen(1))
    spread = Gaussians(g.means * 4, g.quats, g.scales, g.opacities, g.colors)  # many behind, beside and around the camera
    dense = Gaussians.random(400, radius=0.3, scale=0.06, opacity=0.8, generator=gen(2))
    flat = Gaussians(g.means * torch.tensor([1.0, 1.0, 0.0]), g.quats, g.scales, g.opacities, g.colors)
    front = Cameras.look_at(torch.tensor([[0.0, 0, 1.8]]), width=40, height=28)
    thin = dense.scales * torch.randn(dense.scales.shape, generator=gen(39)).mul(2).exp()
    return {
        "a ball": (g, cams),
        "behind and beside the camera": (spread, cams),
        "camera inside the cloud": (spread, Cameras.look_at(torch.tensor([[0.1, 0.2, 0.3]]), width=40, height=28)),
        "hundreds overlapping": (dense, cams),
        "identical depths": (flat, front),
        "on the border": (one_splat(means=[[0.9, 0.0, 0.0]]), front),
        "sub-pixel": (one_splat(scales=[[1e-4, 1e-4, 1e-4]], means=[[0.011, 0.003, 0.0]]), front),
        "screen-filling": (one_splat(scales=[[2.0, 2.0, 2.0]], opacities=[0.4]), front),
        "a needle across the screen": (one_splat(scales=[[1.0, 1e-3, 1e-3]]), front),
        "thin and large": (Gaussians(dense.means, dense.quats, thin, dense.opacities * 0.2, dense.colors).select(slice(60)), cams),
        "opacity 0 and 1": (Gaussians(g.means, g.quats, g.scales, (g.opacities > 0.7).float(), g.colors), cams),
        "opaque and large": (one_splat(scales=[[2.0, 2.0, 2.0]], opacities=[1.0]), front),
        "N = 1": (one_splat(), cams),
        "N = 0": (Gaussians.random(0), cams),
        "one pixel": (g, Cameras.orbit(1, width=1, height=1)),
    }


def oracle(g, cams, background=None, antialiased=False):
    """(rgb, alpha, depth, margin), float64, views stacked. g without batch; colours RGB or SH."""
    g = g.to(torch.float64)
    out = []
    for v in range(len(cams)):
        W = cams.viewmats[v].double()
        colors = g.colors if g.sh_degree is None else eval_sh(g.colors, g.means + W[:3, :3].T @ W[:3, 3])
        out.append(render_one(g.means, g.quats, g.scales, g.opacities, colors, W, cams.Ks[v].double(), cams.width,
                              cams.height, background, antialiased))
    return [torch.stack(x) for x in zip(*out)]


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("case", edge_cases())
def test_values_equal_the_dense_oracle(case, antialiased, engine):
    g, cams = edge_cases()[case]
    background = torch.tensor([0.2, 0.5, 0.9])
    out = rasterize(g, cams, background, engine, antialiased=antialiased, depth_mode="D")
    rgb, alpha, depth, margin = oracle(g, cams, background.double(), antialiased)
    sure = margin > RAZOR
    assert sure.float().mean() > 0.98
    tolerance = 1e-4
    for got, want in ((out.rgb, rgb), (out.alpha[..., 0], alpha), (out.depth[..., 0], depth)):
        error = (got - want).abs()
        assert error.reshape(*sure.shape, -1)[sure].max() <= tolerance * max(1.0, float(want.abs().max()))


def test_the_oracle_comparison_can_fail():
    """Negative control: shifting the scene by a fiftieth of a pixel is seen."""
    g, cams = edge_cases()["a ball"]
    moved = g.transform(translation=torch.tensor([0.0005, 0.0, 0.0]))
    rgb = oracle(g, cams)[0]
    assert (rasterize(moved, cams, engine="numba").rgb - rgb).abs().max() > 1e-3


def losses(out, generator):
    """A loss that reaches every output with random weights."""
    total = 0.0
    for image in (out[0], out[1], out[2]):
        total = total + (image * torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)).sum()
    return total


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("case", ["a ball", "behind and beside the camera", "camera inside the cloud", "hundreds overlapping",
                                  "opacity 0 and 1", "opaque and large", "on the border", "sub-pixel", "screen-filling", "thin and large",
                                  "a needle across the screen", "N = 1"])
def test_gradients_equal_autograd_of_the_oracle(case, antialiased, engine):
    g, cams = edge_cases()[case]
    cams = cams[:1]
    background = torch.tensor([0.2, 0.5, 0.9])

    def leaves(dtype):
        x = [getattr(g, f).to(dtype).clone().requires_grad_() for f in FIELDS]
        return x + [cams.viewmats.to(dtype).clone().requires_grad_(), background.to(dtype).clone().requires_grad_()]

    mine, want = leaves(torch.float32), leaves(torch.float64)
    rgb, alpha, depth, margin = render_one(*want[:5], want[5][0], cams.Ks[0].double(), cams.width, cams.height, want[6], antialiased)
    sure = (margin > RAZOR).float()[..., None]
    weight = torch.Generator().manual_seed(3)
    losses((rgb * sure, alpha[..., None] * sure, depth[..., None] * sure), weight).backward()
    out = rasterize(Gaussians(*mine[:5]), Cameras(mine[5], cams.Ks, cams.width, cams.height), mine[6], engine,
                    antialiased=antialiased, depth_mode="D")
    losses((out.rgb[0] * sure, out.alpha[0] * sure, out.depth[0] * sure), torch.Generator().manual_seed(3)).backward()
    for name, a, b in zip((*FIELDS, "viewmats", "background"), mine, want):
        b.grad = torch.zeros_like(b) if b.grad is None else b.grad  # everything culled
        # A round splat's quaternion gradient is exactly 0, whence the floor (the loss is of the order of 100).
        scale = b.grad.abs().max().clamp_min(0.02)
        assert (a.grad - b.grad).abs().max() <= 5e-5 * scale, f"{name}: {((a.grad - b.grad).abs().max() / scale):.1e}"


def test_reference_gradients_equal_finite_differences():
    g = Gaussians.random(4, scale=0.15, sh_degree=1, generator=gen(5)).to(torch.float64)
    cams = Cameras.orbit(1, width=6, height=5).to(torch.float64)
    inputs = [getattr(g, f).clone().requires_grad_() for f in FIELDS] + [cams.viewmats.clone().requires_grad_()]

    def f(*x):
        out = rasterize(Gaussians(*x[:5]), Cameras(x[5], cams.Ks, 6, 5), engine="reference")
        return out.rgb, out.alpha, out.depth

    assert torch.autograd.gradcheck(f, inputs, eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_engines_agree_on_batches_of_scenes_and_cameras_with_sh(degree):
    g = Gaussians.random(50, scale=0.06, sh_degree=degree, batch=(2, 2), generator=gen(7))
    cams = Cameras.stack([Cameras.stack([Cameras.orbit(3, elevation=10.0 * (i + j), width=24, height=33) for i in range(2)])
                          for j in range(2)])
    background = torch.rand(2, 2, 3, 3, generator=gen(8))
    results = {}
    for engine in ("reference", "numba"):
        leaves = [getattr(g, f).clone().requires_grad_() for f in FIELDS]
        views, back = cams.viewmats.clone().requires_grad_(), background.clone().requires_grad_()
        out = rasterize(Gaussians(*leaves), Cameras(views, cams.Ks, 24, 33), back, engine)
        assert out.rgb.shape == (2, 2, 3, 33, 24, 3) and out.depth.shape == out.alpha.shape == (2, 2, 3, 33, 24, 1)
        losses((out.rgb, out.alpha, out.depth), gen(9)).backward()
        results[engine] = (out, [x.grad for x in (*leaves, views, back)])
    (a, grads_a), (b, grads_b) = results["reference"], results["numba"]
    assert (a.rgb - b.rgb).abs().max() <= 1e-4 and (a.alpha - b.alpha).abs().max() <= 1e-4
    # ED divides by alpha, so its gradient is large where alpha is small: compare relative to the tensor, as everywhere
    for x, y in zip(grads_a, grads_b):
        assert (x - y).abs().max() <= 5e-5 * x.abs().max()
    torch.testing.assert_close(a.info.radii, b.info.radii)
    assert (a.info.grad_norm2d - b.info.grad_norm2d).abs().max() <= 5e-5 * a.info.grad_norm2d.max()
    # each scene of the batch equals its own call
    alone = rasterize(g[1, 0], cams[[0, 1, 2]] if not cams.batch_shape else Cameras(cams.viewmats[1, 0], cams.Ks[1, 0], 24, 33),
                      background[1, 0], "numba")
    assert torch.equal(alone.rgb, b.rgb[1, 0].detach())


def test_a_batch_on_one_side_is_shared():
    scenes = Gaussians.random(20, batch=(3,), generator=gen())
    cams = Cameras.orbit(2, width=16, height=16)
    shared = rasterize(scenes, cams)
    assert torch.equal(shared.rgb[1], rasterize(scenes[1], cams).rgb)
    views = Cameras.stack([cams, Cameras.orbit(2, elevation=50.0, width=16, height=16)])
    assert torch.equal(rasterize(scenes[0], views).rgb[0], rasterize(scenes[0], cams).rgb)
    with pytest.raises(ValueError, match="cameras: got batch shape"):
        rasterize(scenes, views)


def test_projection_equals_gsplat():
    impl = pytest.importorskip("gsplat.cuda._torch_impl")
    g = Gaussians.random(300, scale=0.05, generator=gen(11))
    g = Gaussians(g.means * 3, g.quats, g.scales, g.opacities, g.colors)
    cams = Cameras.orbit(3, elevation=30.0, width=50, height=34)
    p = project(g, cams, antialiased=True)
    covars, _ = impl._quat_scale_to_covar_preci(g.quats, g.scales, triu=False)
    torch.testing.assert_close(g.covariances(), covars, atol=1e-7, rtol=1e-4)
    radii, means2d, depths, conics, comp = impl._fully_fused_projection(g.means, covars, cams.viewmats, cams.Ks, 50, 34,
                                                                        calc_compensations=True)
    seen = (p.radii > 0).all(-1)
    # gsplat's PyTorch version takes the extent without opacity, so it may keep what we cull, never the other way round.
    assert (~seen | (radii > 0).all(-1)).all() and 50 < seen.sum() < seen.numel()
    for mine, theirs in ((p.means2d, means2d), (p.depths, depths), (p.conics, conics),
                         (p.opacities, g.opacities * comp)):
        torch.testing.assert_close(mine[seen], theirs[seen], atol=1e-4, rtol=1e-3)


def test_info_reports_visibility_and_gradient_norms():
    far_away = one_splat(means=[[0.0, 0.0, 9.0]])  # behind the camera
    g = Gaussians.cat([one_splat(), far_away])
    cams = Cameras.look_at(torch.tensor([[0.0, 0, 1.8]]), width=32, height=32)
    for engine in ("reference", "numba"):
        leaves = [getattr(g, f).clone().requires_grad_() for f in FIELDS]
        out = rasterize(Gaussians(*leaves), cams, engine=engine)
        assert out.info.visible.tolist() == [[True, False]] and out.info.grad_norm2d is None
        target = torch.linspace(0, 1, 32)[None, None, :, None]
        ((out.rgb - target) ** 2).sum().backward()
        norm = out.info.grad_norm2d
        assert norm.shape == (1, 2) and norm[0, 0] > 0 and norm[0, 1] == 0
        # the oracle: dL/d mean2d by moving the principal point, which moves every 2D mean by as much
        K = cams.Ks[0].double().clone()
        shift = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        K = K + torch.stack([torch.stack([K.new_zeros(()), K.new_zeros(()), shift[0]]),
                             torch.stack([K.new_zeros(()), K.new_zeros(()), shift[1]]), K.new_zeros(3)])
        g64 = g.to(torch.float64)
        rgb = render_one(g64.means, g64.quats, g64.scales, g64.opacities, g64.colors, cams.viewmats[0].double(), K, 32, 32)[0]
        ((rgb - target[0].double()) ** 2).sum().backward()
        assert abs(norm[0, 0] - shift.grad.norm()) <= 1e-4 * shift.grad.norm()
