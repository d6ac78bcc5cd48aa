"""What each Gaussian is worth, against rendering the scene again without it, in float64."""

from dataclasses import replace

import pytest
import torch

from gsgen_lib.raster import rasterize
from gsgen_lib.raster.contribution import contributions, contributions_of_pairs, most_worth
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from tests.raster.oracle import render_one

W, H = 21, 18


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def scene_of(count=12, seed=0, opacity=(0.1, 0.7), dtype=torch.float64):
    g = Gaussians.random(count, generator=gen(seed))
    scales = 0.05 + 0.1 * torch.rand(count, 3, generator=gen(seed + 1))
    opacities = opacity[0] + (opacity[1] - opacity[0]) * torch.rand(count, generator=gen(seed + 2))
    return replace(g, scales=scales, opacities=opacities).to(dtype)


def leaf(g):
    """The same numbers, of which gradients are wanted."""
    return g.map(lambda x: x.detach().clone().requires_grad_())


def cameras_of(views=2, dtype=torch.float64):
    return Cameras.orbit(views, width=W, height=H).to(dtype)


def without(g, j):
    return g.map(lambda x: torch.cat([x[:j], x[j + 1:]]))


def brute(g, cameras, background, target):
    """(V, N, 2) by rendering again without each, with the dense rasterizer of the tests."""
    def losses(scene, v):
        rgb = render_one(scene.means, scene.quats, scene.scales, scene.opacities, scene.colors, cameras.viewmats[v], cameras.Ks[v],
                         W, H, background[v])[0]
        return torch.stack([(rgb - target[v]).abs().sum(), (rgb - target[v]).square().sum()])

    return torch.stack([torch.stack([losses(g, v) - losses(without(g, j), v) for j in range(g.num)])
                        for v in range(len(cameras))])


BACKGROUNDS = {"black": torch.zeros(2, 3), "white": torch.ones(2, 3), "random": torch.rand(2, 3, generator=gen(5))}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_each_is_worth_what_is_lost_without_it(name):
    g, cameras, background = scene_of(), cameras_of(), BACKGROUNDS[name].double()
    target = torch.rand(2, H, W, 3, generator=gen(9), dtype=torch.float64)
    wanted = brute(g, cameras, background, target)
    found = rasterize(g, cameras, background, engine="reference", target=target).info.contribution
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()
    assert wanted.abs().min() > 1e-6  # none is 0 by being out of sight
    fast = rasterize(leaf(g.to(torch.float32)), cameras, background, engine="numba", target=target.float())
    assert fast.info.contribution is None
    fast.rgb.sum().backward()
    assert (fast.info.contribution.double() - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_the_background_left_out_is_right_on_black_alone():
    """The mistake of the paper's own renderer, planted: S without what is left of the background."""
    g, cameras = scene_of(), cameras_of()
    target = torch.rand(2, H, W, 3, generator=gen(9), dtype=torch.float64)
    for name, right in (("black", True), ("white", False)):
        background = BACKGROUNDS[name].double()
        wanted = brute(g, cameras, background, target)
        dark = rasterize(g, cameras, None, engine="reference", target=target - (1 - rasterize(g, cameras, None).alpha)
                         * background[:, None, None]).info.contribution
        assert ((dark - wanted).abs().max() <= 1e-8 * wanted.abs().max()) == right


@pytest.mark.parametrize("options", [dict(antialiased=True), dict(eps2d=0.8), dict(near=1.7), dict(radius_clip=3.0)])
def test_engines_agree_on_a_batch_with_every_option(options):
    scenes = Gaussians.stack([scene_of(300, s, (0.2, 1.0), torch.float32) for s in (0, 1)])
    cameras = Cameras.orbit(3, width=37, height=29)
    target, background = torch.rand(2, 3, 29, 37, 3, generator=gen(3)), torch.rand(2, 1, 3, generator=gen(4))
    slow = rasterize(scenes, cameras, background, engine="reference", target=target, **options).info.contribution
    fast = rasterize(leaf(scenes), cameras, background, engine="numba", target=target, **options)
    fast.alpha.sum().backward()  # whatever the loss is
    assert fast.info.contribution.shape == (2, 3, 300, 2)
    off = (fast.info.contribution - slow).abs().amax((0, 1, 2)) / slow.abs().amax((0, 1, 2))
    assert off.max() < 2e-3 and slow.abs().mean() > 1e-3


def test_gradients_are_the_same_with_a_target_and_without():
    g = scene_of(200, dtype=torch.float32)
    cameras, target, found = Cameras.orbit(2, width=W, height=H), torch.rand(2, H, W, 3, generator=gen()), []
    for aim in (None, target):
        one = leaf(g)
        out = rasterize(one, cameras, (1.0, 1.0, 1.0), target=aim)
        (out.rgb - target).abs().sum().backward()
        found.append((one.means.grad, one.opacities.grad, one.colors.grad, out.info.grad_norm2d))
        assert (out.info.contribution is None) == (aim is None)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_spherical_harmonics_count_with_their_colours():
    g = scene_of(40, dtype=torch.float32)
    g = replace(g, colors=0.3 * torch.randn(40, 4, 3, generator=gen(2)))
    cameras, target = Cameras.orbit(2, width=W, height=H), torch.rand(2, H, W, 3, generator=gen())
    slow = rasterize(g, cameras, engine="reference", target=target).info.contribution
    fast = rasterize(leaf(g), cameras, engine="numba", target=target)
    fast.rgb.sum().backward()
    torch.testing.assert_close(fast.info.contribution, slow, atol=1e-3, rtol=1e-3)


def test_l1_is_not_its_slope():
    """Where the picture is right already, removing a Gaussian costs; the slope of L1 there is 0."""
    g, cameras = scene_of(), cameras_of()
    target = rasterize(g, cameras).rgb.detach()
    found = rasterize(g, cameras, target=target).info.contribution
    assert (found < 0).all()


def test_results_do_not_depend_on_threads():
    from gsgen_lib.raster.numba_setup import set_num_threads

    g, found = scene_of(3000, dtype=torch.float32), []
    cameras, target = Cameras.orbit(3, width=64, height=64), torch.rand(3, 64, 64, 3, generator=gen())
    try:
        for threads in (1, 3):
            set_num_threads(threads)
            out = rasterize(leaf(g), cameras, target=target)
            out.rgb.sum().backward()
            found.append(out.info.contribution)
    finally:
        set_num_threads(None)
    assert torch.equal(*found)


def test_nothing_visible_is_worth_nothing():
    g = scene_of(5, dtype=torch.float32)
    g = replace(g, means=g.means + 100)
    out = rasterize(leaf(g), Cameras.orbit(1, width=W, height=H), target=torch.ones(1, H, W, 3))
    out.rgb.sum().backward()
    assert out.info.contribution.abs().max() == 0
    no_pairs = torch.zeros(0, dtype=torch.long)
    assert contributions_of_pairs(no_pairs, no_pairs, torch.zeros(0), torch.zeros(4, 3), torch.ones(9, 3),
                                  torch.ones(9, 3)).tolist() == [[0.0, 0.0]] * 4


@pytest.mark.parametrize("target", [torch.ones(1, H, W), torch.ones(2, H, W, 3), torch.full((1, H, W, 3), float("nan")), 1.0])
def test_a_target_that_does_not_fit_is_named(target):
    with pytest.raises(ValueError, match="target: got"):
        rasterize(scene_of(), cameras_of(1), target=target)


# ---- what they are good for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_contributions_are_those_of_a_backward_pass_and_leave_no_gradient(engine):
    dtype = torch.float64 if engine == "reference" else torch.float32
    g, cameras, background = leaf(scene_of(dtype=dtype)), cameras_of(dtype=dtype), BACKGROUNDS["random"].to(dtype)
    target = torch.rand(2, H, W, 3, generator=gen(9), dtype=dtype)
    with torch.no_grad():
        found = contributions(g, cameras, target, background, engine)
    want = brute(*(x.to(torch.float64) for x in (g.detach(), cameras)), background.double(), target.double())
    assert torch.allclose(found.double(), want, rtol=1e-3 if engine == "auto" else 1e-9, atol=1e-4 if engine == "auto" else 1e-10)
    assert g.means.grad is None and not found.requires_grad


def test_of_twins_one_is_kept():
    """Two pairs of opaque twins: in rounds one of each pair stays, and the picture with it; in one round that is luck. A third,
    faint Gaussian alone in its place is the first to go."""
    pair = replace(Gaussians.random(2, generator=gen()), opacities=torch.tensor([0.95, 0.95]), scales=torch.full((2, 3), 0.08),
                   means=torch.tensor([[-0.2, 0.0, 0.0], [0.2, 0.0, 0.0]]), colors=torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))
    faint = replace(pair.select(torch.tensor([0])), means=torch.tensor([[0.0, 0.3, 0.0]]),
                    opacities=torch.tensor([0.03]))
    scene, cameras = Gaussians.cat([pair, pair, faint]), Cameras.orbit(3, width=32, height=32)
    target = rasterize(scene, cameras, (1.0, 1.0, 1.0)).rgb
    left = most_worth(scene, cameras, target, 2, (1.0, 1.0, 1.0))
    assert sorted(left.means[:, 0].tolist()) == pytest.approx([-0.2, 0.2])
    assert (rasterize(left, cameras, (1.0, 1.0, 1.0)).rgb - target).abs().max() < 0.26  # x - x^2 at a flank
    without = scene.select(torch.tensor([0, 2, 4]))  # both blue ones are gone
    assert (rasterize(without, cameras, (1.0, 1.0, 1.0)).rgb - target).abs().max() > 0.9
    assert most_worth(scene, cameras, target, 4, (1.0, 1.0, 1.0)).opacities.min() > 0.9 and most_worth(scene, cameras, target, 5).num == 5


def test_pruning_by_worth_keeps_more_of_the_picture_than_by_opacity():
    g = replace(scene_of(60, dtype=torch.float32), opacities=torch.rand(60, generator=gen(3)))
    cameras = Cameras.orbit(4, width=32, height=32)
    target = rasterize(g, cameras, (1.0, 1.0, 1.0)).rgb

    def off(scene):
        return (rasterize(scene, cameras, (1.0, 1.0, 1.0)).rgb - target).abs().mean().item()

    for count in (10, 20, 30):
        rounds, once = (off(most_worth(g, cameras, target, count, (1.0, 1.0, 1.0), r)) for r in (20, 1))
        opaque = off(g.select(g.opacities.argsort(descending=True)[:count]))
        assert rounds < once + 1e-6 and rounds < 0.9 * opaque


@pytest.mark.parametrize("change", [dict(count=0), dict(count=13), dict(count=2.0), dict(rounds=0)])
def test_most_worth_refuses(change):
    g, cameras = scene_of(dtype=torch.float32), cameras_of(dtype=torch.float32)
    given = dict(gaussians=g, cameras=cameras, target=torch.rand(2, H, W, 3), count=3) | change
    with pytest.raises(ValueError, match="gaussians, count, rounds: got"):
        most_worth(**given)
