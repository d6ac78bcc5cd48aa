"""The octree density: its code, its Gaussians, what its stages teach, and the gradient of places against rendering without each."""

import math
from dataclasses import replace

import pytest
import torch

from gsgen_lib.data.view_sets import toy_views
from gsgen_lib.metrics import ssim
from gsgen_lib.nn.octree import entropy, masses
from gsgen_lib.nn.point_sets import farthest_points, spacing
from gsgen_lib.perceptual import lpips
from gsgen_lib.point_features import point_features
from gsgen_lib.pretrained import load_network
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems import contribution_gradient as cg
from gsgen_lib.systems import octree_density_training as training
from gsgen_lib.systems.contribution_gradient import How, Worth, appearance_loss, sphere, structure_loss, tamed, worth_of_anchors
from gsgen_lib.systems.octree_density import NUMBERS, Context, DensityConfig, OctreeDensity, gaussians_of, load_octree_density, offsets
from gsgen_lib.training import TrainResult, seeded

SMALL = dict(depth=3, tokens=8, width=24, heads=2, layers=(1, 1, 1, 1))


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def make(**more):
    model = seeded(lambda: OctreeDensity(DensityConfig(**SMALL | more)), 0)
    with torch.no_grad():
        for weight in model.parameters():  # new networks are even; these are not
            if not weight.any():
                torch.nn.init.normal_(weight, 0, 0.2, generator=gen(1))
    return model


@pytest.fixture(scope="module")
def toys():
    return toy_views(2, 3, 32, 12, points=256, progress=False)


def views_of(toys, some=slice(None)):
    return toys.images[:, some] / 255, toys.cameras[some]


@pytest.fixture(scope="module")
def code(toys):
    with torch.no_grad():
        return make().encode(toys.points, views_of(toys, slice(0, 8)))[0]


# ---- code, anchors, Gaussians --------------------------------------------------------------------------------------


def test_a_code_serves_any_budget_and_any_number_of_tokens(toys, code):
    model = make()
    for budget in (4, 32, 256):
        g = model.decode(code, budget, gen())
        g.validate()
        assert g.means.shape == (2, budget, 3) and g.means.abs().max() < 1
    for tokens in (1, 4, 16):
        mu, logvar = model.encode(toys.points, views_of(toys), tokens)
        assert mu.shape == logvar.shape == (2, tokens, 16) and model.decode(mu, 64).num == 64


def test_the_generator_decides(code):
    model = make()
    a, b, c = (model.decode(code, 64, gen(k)).means for k in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_objects_do_not_mix(toys, code):
    model = make()
    alone = model.encode(toys.points[1:], (toys.images[1:, :8] / 255, toys[1:].cameras[:8]))[0]
    assert torch.allclose(alone, code[1:], atol=1e-4)
    context = model.context(code)
    points = model.anchors(context, 20, generator=gen()).points
    both, one = model.splats(context, points), model.splats(Context(*(x[1:] for x in context)), points[1:])
    assert torch.allclose(both.means[1:], one.means, atol=1e-5) and torch.allclose(both.colors[1:], one.colors, atol=1e-5)
    assert (both.colors[0] - both.colors[1]).abs().max() > 1e-3


def test_tokens_and_anchors_are_sets(code):
    """The order of tokens changes nothing, that of anchors the order of Gaussians alone."""
    model, order = make(), torch.randperm(8, generator=gen(3))
    points = model.anchors(model.context(code), 12, generator=gen()).points
    wanted = model.splats(model.context(code), points)
    found = model.splats(model.context(code[:, order]), points)
    assert torch.allclose(found.means, wanted.means, atol=1e-5)
    turn = torch.randperm(12, generator=gen(4))
    found = model.splats(model.context(code), points[:, turn])
    assert torch.allclose(found.colors.unflatten(1, (12, -1)), wanted.colors.unflatten(1, (12, -1))[:, turn], atol=1e-5)


def test_pictures_and_normals_are_read(toys):
    model = make()
    plain = model.encode(toys.points, views_of(toys))[0]
    assert (model.encode(toys.points, (1 - toys.images / 255, toys.cameras))[0] - plain).abs().max() > 1e-3
    points = toys.points.clone()
    points[..., 3:6] = points[..., 3:6].flip(-1)
    assert (model.encode(points, views_of(toys))[0] - plain).abs().max() > 1e-3


def test_new_gaussians_are_those_of_the_header():
    points = torch.rand(2, 9, 3, generator=gen()) - 0.5
    unit = spacing(points)
    g = gaussians_of(points, unit, torch.zeros(2, 9, 4, NUMBERS))
    off = (g.means.unflatten(1, (9, 4)) - points[:, :, None]) / unit[..., None, None]
    assert off.abs().max() < 0.5 and off[..., 0].tolist()[0][0] == pytest.approx([-0.375, -0.125, 0.125, 0.375], abs=2e-3)
    half = ((0.5 * unit).square() + 9e-4**2).sqrt()
    assert torch.allclose(g.scales.unflatten(1, (9, 4)), half[..., None, None].expand(2, 9, 4, 3), rtol=0.01)
    assert g.opacities.mean().item() == pytest.approx(0.1, abs=0.002) and g.quats[0, 0].tolist() == [1, 0, 0, 0]


def test_no_offset_is_longer_than_its_reach():
    o, s = 50 * torch.randn(1, 5, 4, 3, generator=gen()), torch.zeros(1, 5, 4, 1)
    assert offsets(torch.ones(1, 5, 1, 1), o, s).abs().max() <= 0.75 * 1.01


def test_budgets_of_constant_unit_do_not_look_at_neighbours(code):
    model = make(spaced=False)
    points = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0]], [[0.0, 0, 0], [0.3, 0, 0]]])
    g = gaussians_of(points, torch.full((2, 2), 0.05), torch.zeros(2, 2, 4, NUMBERS))
    assert torch.equal(g.scales[0], g.scales[1]) and model.config.spaced is False
    assert make().splats(make().context(code), points).scales[0].max() != make().splats(make().context(code), points).scales[1].max()


# ---- what an anchor is worth ---------------------------------------------------------------------------------------


def scene_of(anchors=6, k=2):
    g = Gaussians.random(anchors * k, generator=gen())
    g = replace(g, scales=0.06 + 0.08 * torch.rand(anchors * k, 3, generator=gen(1)))
    return Gaussians.stack([g, replace(g, colors=g.colors.flip(0))])


def brute(scene, cameras, background, wanted, anchors):
    """(B, P): mean L1 with all, less that without each Gaussian, summed over those of an anchor."""
    def loss(g):
        return (rasterize(g, cameras, background, engine="reference").rgb - wanted).abs().mean((1, 2, 3, 4))

    scene, cameras, background, wanted = scene.to(torch.float64), cameras.to(torch.float64), background.double(), wanted.double()
    each = [loss(scene) - loss(scene.map(lambda x: torch.cat([x[:, :j], x[:, j + 1:]], 1))) for j in range(scene.num)]  # noqa: B023
    return torch.stack(each, 1).unflatten(1, (anchors, -1)).sum(-1)


@pytest.mark.parametrize("behind", [0.0, 1.0, None])
def test_the_gradient_of_a_place_is_what_its_gaussians_are_worth(behind):
    scene, cameras = scene_of(), Cameras.stack([Cameras.orbit(2, width=24, height=24)] * 2)
    background = torch.rand(2, 1, 3, generator=gen(4)) if behind is None else torch.full((2, 1, 3), behind)
    wanted = torch.rand(2, 2, 24, 24, 3, generator=gen(5))
    want = brute(scene, cameras, background, wanted, 6)
    log_q = torch.zeros(2, 6, requires_grad=True)
    raw = How(clamp=False, clip=1.0, centre=False)
    rgb, _ = cg._rendered(scene.map(lambda x: x.clone().requires_grad_()), cameras, background, wanted, log_q, raw)
    (rgb - wanted).abs().mean().backward()
    assert torch.allclose(2 * log_q.grad.double(), want, rtol=1e-3, atol=2e-7)  # the loss is a mean over two objects
    tame = torch.zeros(2, 6, requires_grad=True)
    rgb, _ = cg._rendered(scene.map(lambda x: x.clone().requires_grad_()), cameras, background, wanted, tame, How())
    (rgb - wanted).abs().mean().backward()
    assert torch.allclose(2 * tame.grad.double(), tamed(want), rtol=1e-3, atol=5e-7)


def test_without_the_background_it_is_right_on_black_alone():
    """The failure on purpose: the picture is the same, the worths are not, except on black."""
    scene, cameras = scene_of(), Cameras.stack([Cameras.orbit(2, width=24, height=24)] * 2)
    wanted, raw = torch.rand(2, 2, 24, 24, 3, generator=gen(5)), How(clamp=False, clip=1.0, centre=False)
    for level, same in ((0.0, True), (1.0, False)):
        background, found, seen = torch.full((2, 1, 3), level), [], []
        for how in (raw, replace(raw, background=False)):
            log_q = torch.zeros(2, 6, requires_grad=True)
            rgb, alpha = cg._rendered(scene.map(lambda x: x.clone().requires_grad_()), cameras, background, wanted, log_q, how)
            (rgb - wanted).abs().mean().backward()
            found.append(log_q.grad)
            seen.append(rgb.detach())
        assert torch.allclose(*seen, atol=1e-6)
        assert torch.allclose(*found, atol=1e-7) == same
    want = brute(scene, cameras, torch.ones(2, 1, 3), wanted, 6)
    assert (2 * found[1] - want).abs().mean() > 0.2 * want.abs().mean() > 100 * (2 * found[0] - want).abs().mean()


def test_first_order_is_opacity_times_its_derivative():
    scene, cameras = scene_of(), Cameras.stack([Cameras.orbit(2, width=24, height=24)] * 2)
    background, wanted = torch.ones(2, 1, 3), torch.rand(2, 2, 24, 24, 3, generator=gen(5))
    free = scene.map(lambda x: x.clone().requires_grad_())
    (rasterize(free, cameras, background).rgb - wanted).abs().mean((1, 2, 3, 4)).sum().backward()
    want = (free.opacities.grad * free.opacities.detach()).unflatten(1, (6, 2)).sum(-1)
    log_q, how = torch.zeros(2, 6, requires_grad=True), How(exact=False, clamp=False, clip=1.0, centre=False)
    again = scene.map(lambda x: x.clone().requires_grad_())
    rgb, _ = cg._rendered(again, cameras, background, wanted, log_q, how)
    (rgb - wanted).abs().mean().backward()
    assert torch.allclose(2 * log_q.grad, want, rtol=1e-4, atol=1e-7)
    exact = brute(scene, cameras, background, wanted, 6)
    assert (want - exact).abs().max() > 0.05 * exact.abs().max()  # it is not the same


def test_worth_leaves_the_other_gradients_alone():
    scene, cameras = scene_of(), Cameras.stack([Cameras.orbit(2, width=24, height=24)] * 2)
    background, wanted, grads = torch.ones(2, 1, 3), torch.rand(2, 2, 24, 24, 3, generator=gen(5)), []
    for how in (None, How()):
        free = scene.map(lambda x: x.clone().requires_grad_())
        rgb, _ = cg._rendered(free, cameras, background, wanted, torch.zeros(2, 6, requires_grad=True), how)
        (rgb - wanted).abs().mean().backward()
        grads.append([x.grad for x in (free.means, free.opacities, free.scales, free.colors, free.quats)])
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(*grads, strict=True))


def test_a_contribution_counts_views_pixels_and_gaussians_of_an_anchor():
    one = torch.zeros(1, 3, 4, 2)  # three views, two anchors of two Gaussians; L1 and L2
    one[0, :, 0, 0], one[0, 1, 1, 0], one[0, 0, 2, 1] = -1.0, -6.0, 99.0
    assert worth_of_anchors(one, 2, 5).tolist() == [[pytest.approx(-9 / (3 * 5 * 3)), 0.0]]


def test_taming_is_done_in_order():
    d = torch.tensor([[-10.0, -2.0, -1.0, 5.0, -1.0]])
    assert tamed(d, How(clamp=True, clip=1.0, centre=False)).tolist() == [[-10, -2, -1, 0, -1]]
    assert tamed(d, How(clamp=False, clip=1.0, centre=True)).tolist()[0] == pytest.approx([-8.2, -0.2, 0.8, 6.8, 0.8])
    most = torch.tensor([0.0, 1, 1, 2, 10]).quantile(0.75).item()
    want = torch.tensor([-most, -2, -1, 0, -1])
    assert torch.allclose(tamed(d, How(clip=0.75))[0], want - want.mean())
    assert tamed(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_sphere_is_nothing_for_a_centred_cluster_and_grows_with_both_faults():
    points, unit = torch.zeros(1, 1, 3), torch.full((1, 1), 0.1)
    pair = torch.tensor([[[0.05, 0, 0], [-0.05, 0, 0.0]]])

    def of(means):
        g = Gaussians.random(2, generator=gen())
        return sphere(Gaussians.stack([replace(g, means=means[0])]), points, unit).item()

    assert of(pair) == pytest.approx(0, abs=1e-9)
    assert of(pair + torch.tensor([0.03, 0, 0])) == pytest.approx(0.03**2, rel=1e-3)
    assert of(4 * pair) == pytest.approx(0.1**2, rel=1e-3)  # each is one unit beyond


# ---- losses, stages ------------------------------------------------------------------------------------------------


def step(toys, model, how=None, places=None, **more):
    rgba, cameras = views_of(toys)
    return appearance_loss(model, model.config, toys.points, rgba[:, :8], cameras[:8], 8, 10, rgba[:, 8:], cameras[8:], gen(), how,
                           places, **more)


def test_pictures_reach_the_density_in_stage_three_alone(toys):
    for how, reached in ((None, False), (How(), True)):
        model = make(weight_structure=0.0)
        step(toys, model, how)["loss"].backward()
        moved = sum(p.grad.abs().sum().item() for p in model.density.parameters() if p.grad is not None)
        assert (moved > 0) == reached
        assert model.attributes[0].qkv.weight.grad.abs().sum() > 0 and model.read.weight.grad.abs().sum() > 0


def test_stage_three_adds_to_the_encoder_through_the_code(toys):
    grads = []
    for how in (None, How()):
        model = make(weight_structure=0.0)
        step(toys, model, how)["loss"].backward()
        grads.append(model.read.weight.grad.clone())
    assert (grads[0] - grads[1]).abs().max() > 1e-9


def test_structure_teaches_the_density_and_the_code_but_no_attributes(toys):
    model = make()
    rgba, cameras = views_of(toys)
    found = structure_loss(model, model.config, toys.points, rgba, cameras, 8, gen())
    found["loss"].backward()
    assert model.attributes[0].qkv.weight.grad is None and model.density.head.weight.grad.abs().sum() > 0
    assert model.read.weight.grad.abs().sum() > 0 and found["structure"] > 0
    assert found["loss"].item() == pytest.approx((found["structure"] + 0.01 * found["kl"]).item(), rel=1e-5)


def test_anchors_that_are_given_are_taken(toys, monkeypatch):
    places = torch.rand(2, 10, 3, generator=gen(8)) - 0.5
    seen = []
    monkeypatch.setattr(cg, "gaussians_of", lambda points, *more: (seen.append(points), gaussians_of(points, *more))[1])
    step(toys, make(), places=places)
    assert torch.equal(seen[0], places)


def test_weights_of_the_loss_count(toys):
    """Each term alone changes the loss by its weight times itself."""
    base = step(toys, make())["loss"].item()
    for name, more in (("weight_ssim", 0.5), ("weight_lpips", 0.5), ("weight_volume", 50.0), ("weight_opacity", 1.0),
                       ("weight_sphere", 1e3), ("weight_structure", 0.1), ("kl_appearance", 1.0)):
        one, two = (step(toys, make(**{name: getattr(DensityConfig(), name) + k * more}))["loss"].item() for k in (1, 2))
        assert abs(two - one - (one - base)) < 0.02 * abs(one - base) + 1e-5 and one > base + 1e-4, name


def test_training_resumes_stops_and_is_saved_whole(tmp_path):
    card = training.train_density(tmp_path / "a", preset="tiny")
    assert card["name"] == "octree_density" and card["steps"] == 4 and card["start"]["start"]
    model = load_octree_density(tmp_path / "a" / "model")
    g = model.decode(torch.zeros(1, 8, 16), 32, gen())
    g.validate()
    assert training.train_density(tmp_path / "a", preset="tiny") == card  # done is done
    one = training.train_density(tmp_path / "b", preset="tiny", part="joint", worth="none",
                                 start=str(tmp_path / "a" / "appearance" / "model"))
    assert "--worth none" in one["command"] and one["sha256"]["config.json"] == card["sha256"]["config.json"]
    assert one["sha256"]["model.safetensors"] != card["sha256"]["model.safetensors"]
    (tmp_path / "a" / "model" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="sha256"):
        load_octree_density(tmp_path / "a" / "model")
    with pytest.raises(ValueError, match="no OctreeDensity|no card|wanted"):
        load_network("voxel_appearance", OctreeDensity, DensityConfig)


def test_batches_mirror_points_as_pictures(toys):
    """Points, normals and pictures of an object are all mirrored, or none is."""
    draw, signs = training.batches([toys], 2, (10, 10), (8, 8), places=True), []
    for k in range(6):
        points, rgba, viewmats, _, tokens, count, places = draw(gen(k))
        assert rgba.shape[1] == 12 and tokens == 8 and count == 10 and places.shape == (2, 10, 3)
        for b in range(2):
            which = int((toys.points[..., 1:3] == points[b, :, 1:3]).all((1, 2)).nonzero())
            sign = float((points[b, 0, 0] / toys.points[which, 0, 0]).sign())
            flipped = toys.points[which] * torch.tensor([sign, 1, 1, sign, 1, 1, 1, 1, 1])
            assert torch.equal(points[b], flipped)
            seen = toys.images[which, :8].float() / 255
            assert torch.equal(rgba[b, :8], seen if sign > 0 else seen.flip(2))
            assert torch.equal(viewmats[b, :8], toys.cameras.viewmats[which, :8]) == (sign > 0)
            assert (points[b, None, :, :3] - places[b, :, None]).norm(dim=-1).amin(1).max() < 1e-6
            signs.append(sign)
    assert set(signs) == {1.0, -1.0}


@pytest.mark.parametrize("change, says", [
    (dict(preset="huge"), "preset: got"), (dict(part="all", start="x"), "start: got"), (dict(part="joint"), "start: got None"),
    (dict(part="both"), "part: got"), (dict(steps=0), "steps: got"), (dict(worth="much"), "worth, anchors: got"),
    (dict(anchors="surface"), "worth: got anchors"), (dict(clip=0.0), "how.clip: got"), (dict(depth=0), "config.depth: got"),
    (dict(gaussians=0), "config.gaussians: got"), (dict(part="joint", start="nowhere"), "nowhere")])
def test_options_that_do_not_fit_are_named(tmp_path, change, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        training.train_density(tmp_path, **dict(preset="tiny") | change)


@pytest.mark.parametrize("call, says", [
    (lambda m, t: m.encode(t.points[..., :3], views_of(t)), "points: got"),
    (lambda m, t: m.encode(t.points, views_of(t), 0), "tokens: got 0"),
    (lambda m, t: m.encode(t.points, views_of(t), 257), "tokens: got 257"),
    (lambda m, t: m.encode(t.points * float("nan"), views_of(t)), "points: got"),
    (lambda m, t: m.encode(t.points, (t.images[:1] / 255, t.cameras)), "cameras: got"),
    (lambda m, t: m.decode(torch.zeros(1, 8, 15), 64), "z: got"),
    (lambda m, t: m.decode(torch.zeros(1, 8, 16), 63), "budget: got 63"),
    (lambda m, t: m.decode(torch.zeros(1, 8, 16), 0), "budget: got 0"),
    (lambda m, t: m.decode(torch.zeros(1, 8, 16), 64, how="well"), "how: got 'well'"),
    (lambda m, t: DensityConfig(width=25), "config.width: got 25"),
    (lambda m, t: DensityConfig(features="rgb+sift"), "names: got"),
    (lambda m, t: DensityConfig(depth=16), "depth: got 16"),
    (lambda m, t: How(clip=1.5), "how.clip: got 1.5")])
def test_input_that_does_not_fit_is_named(toys, call, says):
    with pytest.raises(ValueError, match=says):
        call(make(), toys)


def test_worth_refuses_nothing_but_needs_a_render():
    """Without a target the rasterizer says nothing of worth: a plain error instead of silence."""
    scene, cameras = scene_of(), Cameras.stack([Cameras.orbit(1, width=16, height=16)] * 2)
    log_q, seen = torch.zeros(2, 6, requires_grad=True), {"pixels": 256, "how": How()}
    means, opacities = Worth.apply(scene.means.requires_grad_(), scene.opacities.requires_grad_(), log_q, seen)
    seen["info"] = (out := rasterize(replace(scene, means=means, opacities=opacities), cameras)).info
    with pytest.raises(TypeError):
        out.rgb.sum().backward()


# ---- formulas, written out again -----------------------------------------------------------------------------------


def test_the_loss_is_that_of_its_formula(toys, monkeypatch):
    """Every term, from what the network found and what was rendered, with large weights so that none hides."""
    weights = dict(weight_ssim=0.7, weight_lpips=0.3, weight_volume=50.0, weight_opacity=0.9, weight_sphere=40.0,
                   weight_structure=0.2, kl_appearance=0.5)
    model, seen = make(**weights), {}
    monkeypatch.setattr(cg, "rasterize", lambda *args, **more: seen.setdefault("out", (args, rasterize(*args, **more)))[1])
    found = {}
    rgba, cameras = views_of(toys)

    def kept(*args, **more):
        found.update(model(*args, **more), some=args[4])
        return found

    loss = appearance_loss(kept, model.config, toys.points, rgba[:, :8], cameras[:8], 8, 10, rgba[:, 8:], cameras[8:], gen(),
                           structure_points=40)
    (scene, there, background, *_), out = seen["out"]
    truth, alpha = rgba[:, 8:, ..., :3], rgba[:, 8:, ..., 3:]
    wanted = truth * alpha + (1 - alpha) * background[:, :, None, None]
    assert torch.equal(there.viewmats, cameras.viewmats[:, 8:]) and (background.std() > 0.01)
    points, k = found["anchors"].points, model.config.gaussians
    want = torch.tensor(0.0)
    want += (out.rgb - wanted).abs().mean() + (out.alpha - alpha).abs().mean()
    want += 0.7 * (1 - ssim(out.rgb, wanted, validate=False))
    want += 0.3 * lpips(out.rgb.flatten(0, 1).clamp(0, 1), wanted.flatten(0, 1), validate=False)
    want += 50 * (scene.scales[..., 0] * scene.scales[..., 1] * scene.scales[..., 2]).mean() + 0.9 * (1 - scene.opacities).mean()
    unit, centred, beyond = spacing(points).clamp(0.005, 0.2), 0.0, 0.0
    for b in range(2):
        for j in range(10):
            off = scene.means[b, j * k:(j + 1) * k] - points[b, j]
            centred += off.mean(0).square().sum() / 20
            beyond += (off.norm(dim=1) - unit[b, j]).clamp_min(0).square().mean() / 20
    want += 40 * (centred + beyond)
    assert found["some"].shape == (2, 40, 3)
    structure = sum(-found["log_q"][b] - entropy(masses(found["some"][b:b + 1], 3)[1]) for b in range(2)) / 2
    mu, logvar = found["mu"][..., 3:], found["logvar"][..., 3:]
    kl = (0.5 * (mu.square() + logvar.exp() - 1 - logvar)).mean()
    want += 0.2 * structure + 0.5 * kl
    assert loss["loss"].item() == pytest.approx(want.item(), rel=1e-5)
    assert loss["structure"].item() == pytest.approx(structure.item(), rel=1e-5) and loss["kl"].item() == pytest.approx(kl.item())
    assert loss["psnr"].item() == pytest.approx(-10 * (out.rgb - wanted).square().mean().log10().item(), rel=1e-4)


def test_training_decodes_a_draw_of_the_code(toys):
    model, noise = make(), torch.randn(2, 8, 16, generator=gen(3))
    rgba, cameras = views_of(toys)
    features = point_features(toys.points[..., :3], toys.points[..., 3:6], rgba, cameras, model.config.names)
    queries = farthest_points(toys.points[..., :3], 8)
    found = model(toys.points, features, queries, noise, toys.points[..., :3], 10, generator=gen())
    drawn = found["mu"] + found["logvar"].exp().sqrt() * noise
    context = model.context(drawn)
    assert torch.allclose(found["numbers"], model.numbers(context, found["anchors"].points), atol=1e-5)
    assert torch.allclose(found["log_q"], model.log_q(context, toys.points[..., :3]), atol=1e-5)
    other = model.numbers(model.context(found["mu"]), found["anchors"].points)
    assert (other - found["numbers"]).abs().max() > 1e-3


def test_a_token_says_where_it_lies(toys, code):
    model = make()
    places = toys.points[..., :3].gather(1, farthest_points(toys.points[..., :3], 8)[..., None].expand(-1, -1, 3))
    assert torch.allclose(model.context(code).places, places, atol=1e-6)
    assert torch.allclose(code[..., :3], 4 * places, atol=1e-5)
    _, logvar = model.encode(toys.points, views_of(toys, slice(0, 8)))
    assert (0.25 * (0.5 * logvar[..., :3]).exp()).max() < 1e-3  # a draw moves it by less than a thousandth
    free = make(placed=False)
    mu, _ = free.encode(toys.points, views_of(toys))
    assert free.context(mu).places is None and free.moments[-1].out_features == 32 and free.decode(mu, 32).num == 32


def test_anchors_know_how_near_others_are():
    """With no attention at all: the same anchor, another neighbour, other numbers."""
    model = make()
    model.attributes = torch.nn.ModuleList([])
    context = model.context(torch.zeros(1, 8, 16))
    near, far = (model.numbers(context, torch.tensor([[[0.0, 0, 0], [x, 0, 0]]]))[0, 0] for x in (0.05, 0.2))
    assert (near - far).abs().max() > 1e-3


def test_activations_are_those_of_the_header():
    raw, point, u = torch.randn(NUMBERS, generator=gen(5), dtype=torch.float64).tolist(), (0.1, -0.2, 0.3), 0.07
    g = gaussians_of(torch.tensor([[point]]), torch.tensor([[u]]), torch.tensor([[[raw]]], dtype=torch.float32))

    def softplus(x):
        return math.log1p(math.exp(x))

    h = (0.0, -1.0, -1.0)  # the first of one Hammersley point, in [-1, 1]
    mean = [c + u * softplus(raw[3] + 0.54) * 0.75 * math.tanh(r + math.atanh(x / 1.5))
            for c, r, x in zip(point, raw[:3], h, strict=True)]
    assert g.means[0, 0].tolist() == pytest.approx(mean, abs=1e-5)
    assert g.scales[0, 0].tolist() == pytest.approx([math.hypot(u * softplus(r - 0.43), 9e-4) for r in raw[4:7]], rel=1e-4)
    assert g.opacities.item() == pytest.approx(1 / (1 + math.exp(2.2 - raw[7])), rel=1e-4)
    q = [1 + 0.1 * raw[8], *(0.1 * r for r in raw[9:12])]
    assert g.quats[0, 0].tolist() == pytest.approx([x / math.sqrt(sum(y * y for y in q)) for x in q], abs=1e-5)
    assert g.colors[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-r)) for r in raw[12:]], rel=1e-4)


def test_pictures_teach_places_in_the_joint_stage_alone(tmp_path, monkeypatch):
    asked = []

    def no_training(model, loss_fn, draw, plan, folder, sheet, minutes, device, facts):
        loss_fn(model, draw(gen()), gen())
        asked[-1] |= {"stage": facts["stage"], "lr": plan.lr, "seed": plan.seed}
        return TrainResult(plan.steps, 1.0, [{"step": plan.steps, "loss": 0.0}])

    monkeypatch.setattr(training, "train", no_training)
    monkeypatch.setattr(training, "structure_loss", lambda *args: asked.append({"how": None, "count": None}))
    monkeypatch.setattr(training, "appearance_loss",
                        lambda net, c, p, rgba, cams, tokens, count, truth, there, g, how, places: asked.append(
                            {"how": how, "count": count, "views": (rgba.shape[1], truth.shape[1])}))
    training.train_density(tmp_path, preset="tiny", clip=0.5, background=False)
    assert [one["stage"] for one in asked] == ["structure", "appearance", "joint"]
    assert [one["how"] for one in asked] == [None, None, How(background=False, clip=0.5)]
    assert [one["lr"] for one in asked] == pytest.approx([1e-3, 1e-3, 2e-4])
    assert len({one["seed"] for one in asked}) == 3 and asked[1]["views"] == (8, 4) and 8 <= asked[2]["count"] <= 16
