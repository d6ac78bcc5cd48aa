"""One image, many worlds, in detail: what the trainings hand on, which options reach what, which inputs are heard."""

import math

import pytest
import torch

from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import MultiView, drawn_from, toy_views
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.view_sets import toy_of
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems import autoreconstructor_training, code_training
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, AutoReconstructorConfig, var_loss
from gsgen_lib.systems.autoreconstructor_diffusion import CodeDenoiser, CodeDiffusionConfig, OneImage, opposite, patches
from gsgen_lib.systems.autoreconstructor_training import batches, recoloured, train_autoreconstructor
from gsgen_lib.systems.code_training import train_codes
from gsgen_lib.systems.dream_starts import grown
from gsgen_lib.systems.one_image_metrics import best_of, seen_points, unseen_pixels
from gsgen_lib.training import TrainResult, seeded

S, CELLS, FEATURES = 32, 4, 24


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def network(**more):
    config = AutoReconstructorConfig(**dict(size=S, widths=(8, 16, 16, FEATURES), budget=600) | more)
    return seeded(lambda: AutoReconstructor(config), 0).eval().requires_grad_(False)


def denoiser():
    config = CodeDiffusionConfig(cells=CELLS, features=FEATURES, widths=(16, 16), embed=16)
    model = seeded(lambda: CodeDenoiser(config), 0)
    torch.nn.init.normal_(model.unet.leave[-1].weight, std=0.1, generator=gen())
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def toys():
    return toy_views(4, 0, S, 10, points=16, progress=False)


@pytest.fixture(scope="module")
def picture(toys):
    return toys.images[:1, 0].float() / 255, Cameras(toys.cameras.viewmats[0, :1], toys.cameras.Ks[0, :1], S, S)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("details")
    train_autoreconstructor(out / "var", preset="tiny", device="cpu")
    return out / "var" / "model"


# ---- what the trainings hand on


def test_codes_are_drawn_of_the_aim_scaled_and_told_of_the_picture(trained, tmp_path, monkeypatch):
    """What `code_loss` gets, recomputed: a draw from the posterior of the aim, scaled; features of the picture, dropped at times."""
    got, drawn = [], []
    real_batches, real_loss = code_training.batches, code_training.code_loss

    def spied_batches(*words):
        draw = real_batches(*words)

        def spied(generator):
            found = draw(generator)
            drawn.append((*found, generator.get_state()))
            return found

        return spied

    def spied_loss(model, net, h, seen, generator):
        got.append((net, h, seen))
        return real_loss(model, net, h, seen, generator)

    monkeypatch.setattr(code_training, "batches", spied_batches)
    monkeypatch.setattr(code_training, "code_loss", spied_loss)
    monkeypatch.setattr(code_training, "DROPPED", 0.5)
    train_codes(tmp_path / "codes", preset="tiny", autoreconstructor=trained, steps=6, device="cpu")  # a Path will do
    var = code_training.load_autoreconstructor(trained)
    steps, dropped = drawn[-8:], 0  # before them, batches for the scales
    assert len(got) == 8
    for (net, h, seen), (picture, aim, behind, mask, drop, state) in zip(got, steps, strict=True):
        with torch.no_grad():
            mu, logvar, *_ = var.encode(aim)
            features = var.encode(patches(picture, mask))[2]
        noise = torch.randn(mu.shape, generator=gen().set_state(state))
        torch.testing.assert_close(h, (mu + (0.5 * logvar).exp() * noise - net.mean[:, None, None]) / net.std[:, None, None],
                                   atol=1e-4, rtol=1e-3)
        stays = (~drop).float()[:, None, None, None]
        torch.testing.assert_close(seen.features, features * stays, atol=1e-4, rtol=1e-3)
        assert torch.equal(seen.mask, mask * stays) and torch.equal(seen.behind, behind)
        dropped += int(drop.sum())
    assert 0 < dropped < 16


def test_pictures_for_codes_are_recoloured_together(toys):
    draw = code_training.batches([toys], 8, CELLS, 0.0)
    picture, aim, behind, *_ = draw(gen(3))
    own = behind == 0
    assert torch.equal(picture[own], aim[own]) and own.any()
    truth = toys.images[:, :8].float().flatten(0, 1) / 255
    for one in picture:
        assert not any(torch.allclose(one, other, atol=1e-3) for other in truth)


def test_batches_show_mirrored_objects_to_mirrored_cameras(toys):
    """Rendered again with the cameras of the batch, mirrored toys in a mirrored world: shapes agree, as they do not otherwise."""
    real = [dict(m, id=f"object {k}") for k, m in enumerate(toys.meta)]  # as if they were no toys
    views = toys.__class__(toys.images, toys.cameras, toys.points, real)
    draw = batches([views], 6)
    turned = 0
    for seed in range(4):
        rgba, viewmats, Ks, _ = draw(gen(seed))
        plan = drawn_from(views, 1, autoreconstructor_training.OTHERS, inputs="around", background=None)(6, gen(seed))
        for k in range(6):
            mesh = toy_of(toys.meta[int(plan.indices[k])]).mesh
            cameras = Cameras(viewmats[k], Ks[k], S, S)
            flipped = not torch.allclose(viewmats[k], plan.cameras.viewmats[k])
            turned += flipped
            shown = mesh.__class__(mesh.vertices * ([-1, 1, 1] if flipped else [1, 1, 1]), mesh.faces[:, ::-1] if flipped else mesh.faces)
            alpha = torch.from_numpy(render_mesh(shown, cameras).rgba[..., 3]).float()
            assert (alpha - rgba[k, ..., 3]).abs().mean() < 0.01
    assert 4 < turned < 20


def test_pictures_of_the_autoreconstructor_are_recoloured(toys):
    rgba = batches([toys], 4)(gen(1))[0]
    plain = drawn_from(toys, 1, autoreconstructor_training.OTHERS, inputs="around", background=None)(4, gen(1)).images
    assert torch.equal(rgba[..., 3], plain[..., 3]) and (rgba - plain).abs()[..., :3].mean() > 0.003


def test_each_object_gets_its_own_colours_and_each_part_of_them_acts():
    x = torch.tensor([0.8, 0.3, 0.1, 1.0]).expand(40, 2, 4, 4, 4)
    off = {"hue": 0.0, "saturation": 0.0, "gain": 0.0}
    for part, check in (("hue", lambda c: c.sum(-1)), ("saturation", lambda c: c.sum(-1)), ("gain", lambda c: c / c.sum(-1, keepdim=True))):
        c = recoloured(x, gen(), **off | {part: 0.15})[:, 0, 0, 0, :3]
        assert c.std(0).max() > 0.01 and len(c.unique(dim=0)) > 35  # acts, on each object by itself
        torch.testing.assert_close(check(c), check(x[:, 0, 0, 0, :3]), atol=1e-4, rtol=1e-3)  # and keeps what it keeps
    c = recoloured(x, gen(), **off | {"saturation": 0.15})[:, 0, 0, 0, :3]
    assert ((c - c.mean(-1, keepdim=True)).norm(dim=-1).std() > 0.01).item()  # nearer to grey, or farther


OPTIONS = {"skips": False, "gaussians": 1, "variational": False, "weight_ssim": 0.0, "weight_kl": 0.5}


@pytest.mark.parametrize("option", [*OPTIONS, "kept", "weight_lpips", None])
def test_options_reach_what_they_name(tmp_path, monkeypatch, option):
    """The network's configuration, the weights of skips in batches, the second stage: each as asked, all else as without."""
    seen = {"lpips": [], "keep": [], "plans": [], "configs": []}

    def spied(model, loss_fn, draw, plan, folder, sheet, minutes, device, facts):
        batch = draw(gen())
        seen["plans"].append(plan)
        seen["keep"].append(torch.cat([draw(gen(k))[3] for k in range(20)]).mean().item())
        loss_fn(model, batch, gen())
        seen["configs"].append(model.config)
        return TrainResult(plan.steps, 1.0, [{"loss": 1.0}])

    monkeypatch.setattr(autoreconstructor_training, "train", spied)
    monkeypatch.setattr(autoreconstructor_training, "var_loss", lambda model, config, rgba, cameras, keep, lpips, generator:
                        seen["lpips"].append((lpips, config)) or {"loss": torch.zeros(())})
    asked = {option: {**OPTIONS, "kept": 1.0, "weight_lpips": 0.07}[option]} if option else {}
    train_autoreconstructor(tmp_path / "x", preset="tiny", device="cpu", **asked)
    plain = AutoReconstructorConfig(size=32, widths=(8, 16, 24, 32), budget=512)
    for config in (*seen["configs"], *(config for _, config in seen["lpips"])):
        for name, value in OPTIONS.items():
            assert getattr(config, name) == (value if name == option else getattr(plain, name))
    assert [lpips for lpips, _ in seen["lpips"]] == [0.0, 0.07 if option == "weight_lpips" else 0.01]
    assert seen["keep"][0] == 1.0 if option == "kept" else 0.2 < seen["keep"][0] < 0.8
    first, second = seen["plans"]
    assert second.lr == pytest.approx(first.lr / 3) and second.seed == first.seed + 1


@pytest.mark.parametrize("system", ["var", "codes"])
def test_a_longer_first_stage_is_not_taken_for_a_shorter_one(trained, tmp_path, system):
    call = (lambda **more: train_autoreconstructor(tmp_path / "x", preset="tiny", device="cpu", **more)) if system == "var" else (
        lambda **more: train_codes(tmp_path / "x", preset="tiny", device="cpu", autoreconstructor=str(trained), **more))
    call(steps=2)
    with pytest.raises(ValueError, match="trained with after=2, wanted 3"):
        call(steps=3)


# ---- what is heard


def test_the_encoder_sees_alpha(picture):
    rgba = picture[0].clone()
    rgba[..., :3] = 1.0  # a white object on white: only alpha tells
    var = network()
    empty = rgba.clone()
    empty[..., 3] = 0.0
    assert (var.encode(rgba)[0] - var.encode(empty)[0]).abs().max() > 1e-3


def test_keep_reaches_the_decoder(picture):
    var, (rgba, camera) = network(), picture
    mu, _, _, skips = var.encode(rgba)
    for keep in (0.0, 0.5, 1.0):
        wanted = var.splats(var.decode(mu, Cameras.stack([camera]), skips, keep))[0]
        assert torch.equal(var.reconstruct(rgba, camera, keep).means, wanted.means)
    without = var.splats(var.decode(mu, Cameras.stack([camera])))[0]
    assert torch.equal(var.reconstruct(rgba, camera, 0.0).means, without.means)
    one = OneImage(var, denoiser())
    bare, full = (one.sample(rgba, camera, 1, keep=keep, steps=2, generator=gen()) for keep in (0.0, 1.0))
    h = one.draw(one.seen(rgba), steps=2, generator=gen())
    assert torch.equal(bare.means, var.splats(var.decode(h, Cameras.stack([camera]))).means)
    assert not torch.equal(bare.means, full.means)


def test_the_spread_of_codes_is_bounded_and_says_nothing_in_a_regression(toys):
    var = network()
    var.moments.bias.data[4:] = 50.0
    rgba = toys.images[:, 0].float() / 255
    assert var.encode(rgba)[1].max() == 10.0
    var.moments.bias.data[4:] = -50.0
    assert var.encode(rgba)[1].min() == -20.0
    batch = MultiView(toys, 1, 3, background=None).batch(range(4), gen())
    found = []
    for bias in (0.0, 3.0):
        mean = network(variational=False)
        mean.moments.bias.data[4:] = bias
        found.append(var_loss(mean, mean.config, batch.images, batch.cameras, torch.ones(4), generator=gen())["loss"].item())
    assert found[0] == found[1]


def test_masks_are_dropped_with_the_picture_and_may_be_of_truth_values(picture):
    one = OneImage(network(), denoiser())
    mask = torch.zeros(1, 1, CELLS, CELLS)
    mask[..., :2] = 1
    seen = one.seen(picture[0], mask)
    gone = seen.dropped(torch.tensor([True]))
    assert not gone.mask.any() and not gone.features.any() and seen.mask.any()
    assert torch.equal(one.seen(picture[0], mask.bool()).features, seen.features)
    both = [one.sample(*picture, 1, mask=m, steps=2, generator=gen()).means for m in (mask, mask.bool())]
    assert torch.equal(*both)


def test_the_second_set_sees_no_hidden_patch(picture):
    """Two pictures that differ in the hidden half alone give the same two sets."""
    one, (rgba, camera) = OneImage(network(), denoiser()), picture
    mask = torch.ones(1, 1, CELLS, CELLS)
    mask[..., 2:] = 0
    other = rgba.clone()
    other[:, :, S // 2 :] = torch.rand(1, S, S // 2, 4, generator=gen())
    a, b = (one.sample(x, camera, 1, behind=True, mask=mask, steps=2, generator=gen(4)) for x in (rgba, other))
    assert torch.equal(a.means, b.means) and a.num == 1200
    c = one.sample(other, camera, 1, behind=True, steps=2, generator=gen(4))
    assert not torch.equal(a.means[:, 600:], c.means[:, 600:])


def test_features_are_divided_by_their_spread(picture):
    model = denoiser()
    one = OneImage(network(), model)
    seen, x = one.seen(picture[0]), torch.randn(1, 4, CELLS, CELLS, generator=gen())
    plain = model(x, torch.tensor([300]), seen)
    model.feature_std.fill_(4.0)
    louder = seen.__class__(4 * seen.features, seen.mask, seen.behind)
    torch.testing.assert_close(model(x, torch.tensor([300]), louder), plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(x, torch.tensor([300]), seen), plain, atol=1e-4)


def test_eta_adds_noise_at_every_step(picture):
    one = OneImage(network(), denoiser())
    seen, noise = one.seen(picture[0]), torch.randn(1, 4, CELLS, CELLS, generator=gen())
    a, b = (one.draw(seen, steps=4, eta=1.0, noise=noise, generator=gen(k)) for k in (0, 1))
    c, d = (one.draw(seen, steps=4, eta=0.0, noise=noise, generator=gen(k)) for k in (0, 1))
    assert not torch.equal(a, b) and torch.equal(c, d)


def test_views_around_differ_from_object_to_object_and_streams_hear_the_choice(toys):
    many = toys[[0] * 4 + [1] * 4 + [2] * 4]
    batch = MultiView(many, 1, 2, inputs="ring", background=None).batch(range(12), gen())
    assert len(set(batch.views[:, 0].tolist())) > 3 and max(batch.views[:, 0].tolist()) < 8

    def stream(count, generator):
        return toys[torch.randint(4, (count,), generator=generator).tolist()]

    seen = torch.cat([drawn_from(stream, 1, 2, inputs="ring")(4, gen(k)).views[:, 0] for k in range(12)])
    assert seen.max() < 8  # of ten views
    assert torch.cat([drawn_from(stream, 1, 2)(4, gen(k)).views[:, 0] for k in range(12)]).max() >= 8


# ---- growing


def test_copies_are_half_as_opaque_tinted_and_beside(picture):
    scene = Gaussians.random(200, generator=gen())
    found = grown(scene, share=1.0, spread=0.0, colors=0.0, generator=gen(1))
    rows = [int((scene.means == m).all(1).nonzero()[0, 0]) for m in found.means[200:]]
    torch.testing.assert_close(found.opacities[200:], 0.5 * scene.opacities[rows])
    assert torch.equal(found.colors[200:], scene.colors[rows]) and torch.equal(found.means[:200], scene.means)
    tinted = grown(scene, share=1.0, spread=0.0, colors=0.1, generator=gen(1))
    off = (tinted.colors[200:] - scene.colors[rows]).abs()
    assert 0.03 < off.mean() < 0.06 and off.max() <= 0.1 + 1e-6


# ---- wrong input


@pytest.mark.parametrize("call, said", [
    (lambda var, p: grown(Gaussians.random(3, generator=gen()), spread=math.nan), "share, spread, colors: got 0.5, nan"),
    (lambda var, p: grown(Gaussians.random(3, generator=gen()), share=math.inf), "share, spread, colors: got inf"),
    (lambda var, p: var.reconstruct(*p, keep=math.nan), "keep: got nan"),
    (lambda var, p: var.reconstruct(*p, noise=torch.zeros(4)), r"noise: got shape \(4,\)"),
    (lambda var, p: var.reconstruct(*p, noise=torch.full((4, CELLS, CELLS), math.nan)), "noise: .* finite"),
    (lambda var, p: OneImage(var, denoiser()).sample(*p, keep=math.inf), "keep: got inf"),
    (lambda var, p: OneImage(var, denoiser()).draw(OneImage(var, denoiser()).seen(p[0]),
                                                  noise=torch.full((1, 4, CELLS, CELLS), math.nan)), "noise: .* finite"),
    (lambda var, p: var.decode(torch.zeros(2, 4, CELLS, CELLS), Cameras.stack([p[1]] * 2), (), torch.ones(3)), r"keep: got shape \(3,\)"),
    (lambda var, p: best_of(torch.zeros(3), 1), r"scores: got shape \(3,\)"),
    (lambda var, p: best_of(torch.full((1, 3), math.nan), 1), "scores: .* finite"),
    (lambda var, p: seen_points(Gaussians.random(3, generator=gen()), 0), "count: got 0"),
    (lambda var, p: unseen_pixels(None, Cameras.orbit(2), Cameras.orbit(1)), "picture, there: got 2"),
    (lambda var, p: unseen_pixels(None, Cameras.stack([Cameras.orbit(1)]), Cameras.orbit(1)), "picture, there"),
    (lambda var, p: batches([], 4), "sets: got none"),
    (lambda var, p: train_autoreconstructor(preset="tiny", weight_lpips=-1.0), "weight_lpips: got -1.0"),
    (lambda var, p: train_autoreconstructor(preset="tiny", weight_kl=math.nan), "weight_kl: got nan"),
])
def test_wrong_input_is_named(picture, call, said):
    with pytest.raises(ValueError, match=said):
        call(network(), picture)


def test_wrong_views_are_named(toys):
    for more, said in (({"views_in": 2.5}, "views_in"), ({"background": 3}, "background")):
        with pytest.raises(ValueError, match=said):
            MultiView(toys, **more)
    scene = Gaussians.random(3, generator=gen())
    scene.opacities[0] = math.nan
    with pytest.raises(ValueError, match="opacities that are no numbers"):
        seen_points(scene)


def test_a_second_set_is_seen_from_behind(picture):
    """Rendered from behind, the second set is what the network would make of a picture from there: nothing of it is lost."""
    one, (rgba, camera) = OneImage(network(), denoiser()), picture
    both = one.sample(rgba, camera, 1, behind=True, steps=2, generator=gen())
    second = both.map(lambda x: x[:, 600:])
    alpha = rasterize(second, Cameras.stack([opposite(camera)]), (0.0, 0.0, 0.0)).alpha
    assert alpha.mean() > 0.05 and on_background(rgba, torch.ones(3)).shape == (1, S, S, 3)
