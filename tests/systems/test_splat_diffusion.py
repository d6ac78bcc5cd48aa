"""Latent diffusion over scenes: what it may know, against exact denoisers, re-rendered mirrors, counts and formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gsgen_lib.data.captioned_views import names_heldout, on_background
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.data.toys import FAMILIES
from gsgen_lib.data.view_sets import toy_of, toy_views
from gsgen_lib.diffusion import q_sample
from gsgen_lib.pretrained import save_network
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.prompt_scorer import Scorer
from gsgen_lib.systems.splat_diffusion import (
    Condition,
    SplatDenoiser,
    SplatDiffusion,
    SplatDiffusionConfig,
    diffusion_loss,
    load_splat_diffusion,
    scene_cameras,
)
from gsgen_lib.systems.splat_diffusion_metrics import (
    back_camera,
    captions_first,
    frequencies,
    gradient_energy,
    hidden_toys,
    right_by_neighbours,
    total_variation,
)
from gsgen_lib.systems.splat_diffusion_training import (
    WAYS,
    batches,
    encode_scenes,
    mirrored_scenes,
    real_scenes,
    scene_latents,
    scene_views,
    train_splat_diffusion,
    ways,
)
from gsgen_lib.systems.splat_vae import SplatVAE, SplatVAEConfig, encoder_digest, load_splat_vae
from gsgen_lib.training import seeded

CELLS = 4


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def words_of(prompts):
    """Stands for a text encoder: numbers that depend on the letters; nothing for "" but a constant."""
    rows = [np.random.default_rng([len(p), *p.encode()]).normal(size=(5, 96)) for p in prompts]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


@pytest.fixture(scope="module")
def vae():
    return seeded(lambda: SplatVAE(SplatVAEConfig(size=32, widths=(16, 16, 16, 16), depths=6)), 0).eval().requires_grad_(False)


def denoiser(prediction="v", awake=True):
    model = seeded(lambda: SplatDenoiser(SplatDiffusionConfig(cells=CELLS, widths=(16, 24), embed=32, prediction=prediction)), 0)
    if awake:  # layers that start as 0
        for part in model.modules():
            for name in ("weight",):
                w = getattr(part, name, None)
                if isinstance(w, torch.nn.Parameter) and not w.any():
                    torch.nn.init.normal_(w, std=0.2, generator=gen())
    return model.eval().requires_grad_(False)


@pytest.fixture
def sampler(vae):
    return SplatDiffusion(vae, denoiser(), words_of)


@pytest.fixture(scope="module")
def scenes():
    return scene_views(4, 5, 32, progress=False)


# ---- what it may know


@torch.no_grad()
def test_a_hidden_view_changes_nothing_and_in_the_joint_encoding_it_would(sampler, scenes):
    four = scenes.images[:2].float() / 255
    other = four.clone()
    other[:, 2] = four[:, 2].flip(1)  # the back upside down
    told = [sampler.condition(["", ""], x[:, :1], (0,)) for x in (four, other)]
    assert all(torch.equal(a, b) for a, b in zip(vars(told[0]).values(), vars(told[1]).values(), strict=True))
    drawn = [sampler.draw(c, 3, generator=gen()) for c in told]
    assert torch.equal(*drawn)
    every = Cameras.stack([sampler.cameras] * 2)
    joint = [sampler.vae.encode(x, every)[0][:, 0] for x in (four, other)]  # the control: the front's latent knows the back
    assert not torch.equal(*joint)
    alone = sampler.vae.encode(four[:, :1], every[:1])[0]
    torch.testing.assert_close(told[0].views[:, :1], sampler.denoiser.scale(alone))
    assert not told[0].views[:, 1:].any() and told[0].known.tolist() == [[1, 0, 0, 0]] * 2


@torch.no_grad()
def test_what_is_given_matters(sampler, scenes):
    four = scenes.images[:1].float() / 255
    nothing, said = sampler.condition([""]), sampler.condition(["a red mug"])
    front, back = (sampler.condition([""], four[:, [v]], (v,)) for v in (0, 2))
    drawn = [sampler.draw(c, 2, generator=gen()) for c in (nothing, said, front, back)]
    for i, a in enumerate(drawn):
        for b in drawn[i + 1:]:
            assert (a - b).abs().max() > 1e-3


@torch.no_grad()
def test_training_encodes_given_views_alone(vae, scenes):
    found = encode_scenes(vae, scenes, gen(), batch=3, progress=False)
    assert found["known"].shape == (4, len(WAYS), 4)
    cameras = scene_cameras(32)
    for i in range(4):
        rgba = scenes.images[i].float() / 255
        mu, logvar = vae.encode(rgba[None], Cameras.stack([cameras]))
        torch.testing.assert_close(found["mu"][i].float(), mu[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(found["logvar"][i].float(), logvar[0], atol=2e-2, rtol=2e-3)
        for way in range(len(WAYS)):
            places = found["known"][i, way].nonzero()[:, 0].tolist()
            wanted = torch.zeros_like(mu[0])
            if places:
                wanted[places] = vae.encode(rgba[None, places], Cameras.stack([cameras[places]]))[0][0]
            torch.testing.assert_close(found["alone"][i, way].float(), wanted, atol=2e-3, rtol=2e-3)


def test_the_ways_give_as_many_views_as_they_say():
    known = ways(200, gen())
    assert known.sum(-1).unique(dim=0).tolist() == [[0, 1, 1, 2, 3]] and (known[:, 1, 0] == 1).all()
    assert (known[:, 2].mean(0) - 0.25).abs().max() < 0.12  # any view, not the front alone


def test_batches_come_scaled_and_with_what_they_say(vae, scenes):
    found = encode_scenes(vae, scenes, gen(), progress=False)
    model = denoiser()
    model.mean.copy_(torch.arange(6.0))
    model.std.copy_(torch.full((6,), 2.0))
    captions = [f"caption {i}" for i in range(4)]
    draw, seen = batches(found, captions, words_of, model, 3, 64), set()
    empty = words_of([""])[0]
    for seed in range(4):
        z, words, alone, known = draw(gen(seed))
        assert z.shape == (64, 4, 6, CELLS, CELLS) and not alone[known == 0].any()
        assert alone[known == 1].any()
        torch.testing.assert_close(z, draw(gen(seed))[0])
        dropped = (words - empty).abs().amax((1, 2)) < 1e-2
        seen |= {(int(k), bool(d)) for k, d in zip(known.sum(1), dropped, strict=True)}
        sigma = (0.5 * found["logvar"].float()).exp().amax()
        mu = model.scale(found["mu"].float())
        near = (z[:, None] - mu[None]).abs().amax((2, 3, 4, 5)).amin(1)  # to the scene it is of
        assert near.max() < 6 * sigma / 2
    assert seen == {(k, d) for k in range(4) for d in (True, False)}
    assert not batches(found, captions, words_of, model, 3, 64, no_views=True)(gen())[3].any()


# ---- diffusion


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_the_loss_is_0_for_the_right_answer_and_the_formula_for_another(prediction):
    net, z, cameras = denoiser(prediction), torch.randn(5, 4, 6, CELLS, CELLS, generator=gen(1)), scene_cameras(32)
    given = Condition(torch.zeros(5, 3, 96), torch.zeros_like(z), torch.zeros(5, 4))
    asked = {}

    def right(x, t, *_):
        abar = net.alphas_cumprod[t].double()[:, None, None, None, None]
        eps = (x.double() - abar.sqrt() * z) / (1 - abar).sqrt()
        asked.update(x=x, t=t)
        return {"v": abar.sqrt() * eps - (1 - abar).sqrt() * z, "eps": eps, "x0": z}[prediction].float()

    assert diffusion_loss(right, net, z, given, cameras, gen())["loss"] < 1e-4
    assert asked["t"].unique().numel() > 2
    wrong = diffusion_loss(lambda x, t, *_: right(x, t) + 0.5, net, z, given, cameras, gen())["loss"]
    assert wrong.item() == pytest.approx(0.25, rel=1e-2)
    abar = net.alphas_cumprod[asked["t"]]
    g = gen()
    torch.randint(1000, (5,), generator=g)
    torch.testing.assert_close(asked["x"], q_sample(z, torch.randn(z.shape, generator=g), abar))


def test_a_regression_is_asked_without_noise_for_the_scene_itself():
    net, z = denoiser("x0"), torch.randn(3, 4, 6, CELLS, CELLS, generator=gen())
    given = Condition(torch.zeros(3, 3, 96), torch.zeros_like(z), torch.zeros(3, 4))

    def answer(x, t, *_):
        assert not x.any() and (t == 999).all()
        return torch.zeros_like(z)

    found = diffusion_loss(answer, net, z, given, scene_cameras(32), gen(), regression=True)["loss"]
    torch.testing.assert_close(found, z.square().mean())


@pytest.mark.parametrize("prediction", ["v", "eps", "x0"])
def test_sampling_finds_the_only_scene_there_is_and_guidance_is_its_formula(vae, prediction):
    """An exact denoiser of data at one point (another for words): samples are the point, guided ones beyond it."""
    model = denoiser(prediction)
    model.mean.copy_(torch.arange(6.0) / 10)
    model.std.copy_(1 + torch.arange(6.0) / 5)
    points = {True: torch.randn(4, 6, CELLS, CELLS, generator=gen(2)), False: torch.randn(4, 6, CELLS, CELLS, generator=gen(3))}

    def exact(x, t, given, cameras):
        said = (given.words - words_of([""])).abs().amax((1, 2)) > 1e-3
        x0 = torch.stack([points[bool(s)] for s in said])
        abar = model.alphas_cumprod[t].double()[:, None, None, None, None]
        eps = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        return {"v": abar.sqrt() * eps - (1 - abar).sqrt() * x0, "eps": eps, "x0": x0}[prediction].float()

    model.forward = exact
    sampler = SplatDiffusion(vae, model, words_of)
    told = sampler.condition(["a red mug", ""])
    tol = dict(atol=2e-2 if prediction == "eps" else 1e-3, rtol=1e-3)
    for way in ("ddim", "ddpm"):
        z = sampler.draw(told, 10, guidance_scale=1.0, sampler=way, generator=gen())
        torch.testing.assert_close(model.scale(z), torch.stack([points[True], points[False]]), **tol)
    if prediction == "x0":  # guidance of x0 is linear in the points at every step
        z = sampler.draw(told, 10, guidance_scale=3.0, generator=gen())
        beyond = points[False] + 3 * (points[True] - points[False])
        torch.testing.assert_close(model.scale(z)[0], beyond, **tol)
        torch.testing.assert_close(model.scale(z)[1], points[False], **tol)


@torch.no_grad()
def test_guidance_acts_in_its_interval_alone_and_elsewhere_one_pass_is_enough(sampler, monkeypatch):
    told, asked, whole = sampler.condition(["a red mug"]), [], sampler.denoiser.forward

    def counted(x, t, given, cameras):
        asked.append((int(t[0]), len(x)))
        return whole(x, t, given, cameras)

    monkeypatch.setattr(sampler.denoiser, "forward", counted)
    found = {interval: sampler.draw(told, 10, 3.0, generator=gen(), interval=interval)
             for interval in ((0, float("inf")), (500, 1000), (2000, 3000))}
    parts = asked[:10], asked[10:20], asked[20:]
    assert [n for _, n in parts[0]] == [2] * 10 and [n for _, n in parts[2]] == [1] * 10
    assert [n for _, n in parts[1]] == [2 if t >= 500 else 1 for t, _ in parts[1]] and len({n for _, n in parts[1]}) == 2
    unguided, guided = sampler.draw(told, 10, 1.0, generator=gen()), sampler.draw(told, 10, 3.0, generator=gen())
    assert torch.equal(found[2000, 3000], unguided) and torch.equal(found[0, float("inf")], guided)
    assert not any(torch.equal(found[500, 1000], z) for z in (unguided, guided))
    with pytest.raises(ValueError, match="interval: got"):
        sampler.draw(told, 2, 3.0, interval=(2, 1), generator=gen())


@torch.no_grad()
def test_scenes_of_a_batch_are_drawn_each_for_itself(sampler):
    told = sampler.condition(["a red mug", "a blue car"])
    noise = torch.randn(2, 4, 6, CELLS, CELLS, generator=gen())
    both = sampler.draw(told, 3, noise=noise)
    for i in (0, 1):
        torch.testing.assert_close(sampler.draw(told[[i]], 3, noise=noise[[i]]), both[[i]], atol=1e-4, rtol=1e-4)
    assert sampler.sample(["a red mug"], steps=2, generator=gen()).batch_shape == (1,)


@pytest.mark.parametrize("call,message", [
    (lambda s, x: s.condition("a mug"), "captions: got 'a mug'"),
    (lambda s, x: s.condition([]), "captions: got"),
    (lambda s, x: s.condition([""], x, ()), "places: got"),
    (lambda s, x: s.condition([""], x, (4,)), "places: got"),
    (lambda s, x: s.condition([""], x.repeat(1, 2, 1, 1, 1), (1, 1)), "places: got"),
    (lambda s, x: s.condition([""], None, (0,)), "places: got"),
    (lambda s, x: s.condition(["", ""], x, (0,)), "rgba: got"),
    (lambda s, x: s.condition([""], (255 * x).byte(), (0,)), "rgba: got torch.uint8"),
    (lambda s, x: s.draw(s.nothing(1), sampler="euler"), "sampler: got 'euler'"),
    (lambda s, x: s.draw(s.nothing(1), noise=torch.zeros(2, 4, 6, CELLS, CELLS)), "noise: got"),
    (lambda s, x: s.draw(s.nothing(1), steps=0), "steps: got 0"),
])
def test_wrong_input_is_named(sampler, scenes, call, message):
    with pytest.raises(ValueError, match=message):
        call(sampler, scenes.images[:1, :1].float() / 255)


def test_networks_that_do_not_fit_are_refused(vae):
    with pytest.raises(ValueError, match="denoiser: draws latents of 6 x 8 x 8"):
        SplatDiffusion(vae, SplatDenoiser(SplatDiffusionConfig(widths=(8, 8), embed=8)), words_of)
    for wrong in (dict(prediction="noise"), dict(cells=5), dict(latent=0)):
        with pytest.raises(ValueError, match=f"config.{list(wrong)[0]}"):
            SplatDiffusionConfig(**wrong)


# ---- scenes


def test_mirrored_scenes_are_renders_of_the_mirrored_mesh():
    views = toy_views(2, 8, 48, 4, family="mug", points=16, progress=False)  # the handle is on one side
    found = mirrored_scenes(views)
    for i in range(2):
        mesh = toy_of(views.meta[i]).mesh
        flipped = replace(mesh, vertices=mesh.vertices * np.float32([-1, 1, 1]), faces=mesh.faces[:, ::-1].copy(),
                          **({} if mesh.uv is None else {"uv": mesh.uv[:, ::-1].copy()}))
        wanted = torch.from_numpy(render_mesh(flipped, scene_cameras(48)).rgba).float()
        got = found.images[i].float() / 255
        assert (got[..., 3] - wanted[..., 3]).abs().mean() < 0.004
        assert (views.images[i].float() / 255 - wanted)[..., 3].abs().mean() > 0.01  # not by symmetry


def test_real_scenes_leave_out_captions_of_held_out_toys():
    views = real_scenes("train", 32, limit=None)
    assert not any(names_heldout(caption) for caption in views.captions) and views.images.shape[1:] == (4, 32, 32, 4)
    torch.testing.assert_close(views.cameras.centers[0], scene_cameras(32).centers, atol=1e-4, rtol=0)


# ---- reading hidden attributes


def test_hidden_toys_hide_and_the_reader_reads():
    cases = hidden_toys(14, size=48)
    assert [c.toy.family for c in cases] == list(FAMILIES)
    for case in cases:
        assert case.odds.sum().item() == pytest.approx(1) and len(case.odds) == len(case.combinations)
        seen = render_mesh(case.toy.mesh, back_camera(48)).rgba
        picture = on_background(torch.from_numpy(seen).float(), torch.ones(3))
        noisy = (picture + 0.1 * torch.randn(picture.shape, generator=gen())).clamp(0, 1)
        assert case.read(noisy).item() == case.true
        assert case.combinations[case.true] == tuple(case.toy.hidden.values())
        front = {c: render_mesh(case.toy.with_attributes(**dict(zip(case.toy.odds, c, strict=True))).mesh,
                                scene_cameras(48)[:1]).rgba for c in case.combinations}
        first = next(iter(front.values()))
        assert all(np.abs(f - first).max() < 0.02 for f in front.values())  # the front is the same whatever is hidden


def test_frequencies_know_fair_draws_from_unfair_ones():
    cases = hidden_toys(28, size=16)
    fair = [torch.multinomial(c.odds, 400, True, generator=gen(i)) for i, c in enumerate(cases)]
    always = [c.odds.argmax().expand(400) for c in cases]
    a, b = (frequencies(cases, read, gen()) for read in (fair, always))
    assert a["pooled"] < 0.04 and a["each"] < 0.05 and abs(a["each"] - a["each, by chance"]) < 0.01
    assert b["pooled"] > 0.4 and b["each"] > 0.4
    few = frequencies(cases, [f[:16] for f in fair], gen())
    assert few["each, by chance"] == pytest.approx(few["each"], abs=0.03) and few["each"] > 0.06
    assert total_variation(torch.tensor([3.0, 1.0]), torch.tensor([0.25, 0.75])) == pytest.approx(0.5)


def test_a_blur_has_less_gradient_energy():
    sharp = torch.rand(3, 16, 16, 3, generator=gen())
    blurred = torch.nn.functional.avg_pool2d(sharp.movedim(-1, 1), 3, 1, 1).movedim(1, -1)
    assert (gradient_energy(blurred) < 0.5 * gradient_energy(sharp)).all()
    loop = np.mean([(sharp[0, y, x] - sharp[0, y, x + 1]).square().mean().item() for y in range(16) for x in range(15)])
    loop += np.mean([(sharp[0, y, x] - sharp[0, y + 1, x]).square().mean().item() for y in range(15) for x in range(16)])
    assert gradient_energy(sharp)[0].item() == pytest.approx(loop / 2, rel=1e-5)


def test_scenes_are_ranked_by_their_four_views_together():
    """A judge whose vectors are known: three of four views of a scene speak for its caption, one for another's."""
    captions = [f"caption {i}" for i in range(5)]

    def embed(images):  # the colour of the first pixel says which caption a view is of
        return torch.nn.functional.one_hot((images[:, 0, 0, 0] * 10).round().long(), 5).float()

    judge = Scorer("known", embed, lambda prompts: torch.eye(5)[[int(p[-1]) for p in prompts]])
    says = torch.tensor([[i, i, i, (i + 1) % 5] for i in range(5)])
    pictures = (says.flatten() / 10)[:, None, None, None].expand(-1, 4, 4, 3)
    assert captions_first(judge, pictures, captions) == 1.0
    assert captions_first(judge, pictures.roll(4, 0), captions) == 0.0
    says[0] = torch.tensor([0, 1, 1, 1])
    assert captions_first(judge, (says.flatten() / 10)[:, None, None, None].expand(-1, 4, 4, 3), captions) == pytest.approx(0.8)


def test_neighbours_vote():
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]])
    assert right_by_neighbours(x, list("aabba"), k=1) == pytest.approx(0.6)  # 0 1 | 2 3; 2 is as near to 1, which comes first
    assert right_by_neighbours(torch.randn(60, 4, generator=gen()), ["a", "b"] * 30) < 0.75


# ---- training, and what ships


@pytest.fixture
def small_vae(tmp_path, vae):
    save_network(vae, tmp_path / "vae", {"name": "splat_vae_8"})
    return str(tmp_path / "vae")


def test_the_tiny_preset_trains_resumes_and_is_loaded_with_its_autoencoder(tmp_path, small_vae):
    run = tmp_path / "run"
    assert train_splat_diffusion(run, preset="tiny", autoencoder=small_vae, minutes=0.0, device="cpu") == {}
    card = train_splat_diffusion(run, preset="tiny", autoencoder=small_vae, device="cpu")
    assert card["steps"] == 5 and card["encoder_sha256"] == encoder_digest(load_splat_vae(small_vae))
    sampler = load_splat_diffusion(run / "model")
    assert sampler.denoiser.std.min() > 0 and sampler.denoiser.alphas_cumprod[-1] < 1e-4
    assert sampler.sample(["a red mug"], steps=2, generator=gen()).num == 4 * 1024
    other = load_splat_vae(small_vae)
    for part, allowed in (("leave", True), ("moments", False)):  # another decoder reads the same latents, another encoder not
        next(getattr(other, part).parameters()).add_(0.1)
        save_network(other, tmp_path / "vae", {"name": "splat_vae_8"})
        if allowed:
            load_splat_diffusion(run / "model")
    with pytest.raises(ValueError, match="learned with"):
        load_splat_diffusion(run / "model")
    with pytest.raises(ValueError, match="preset: got 'huge'"):
        train_splat_diffusion(run, preset="huge")


def test_a_checkpoint_of_another_task_or_autoencoder_is_refused(tmp_path, small_vae):
    run = dict(preset="tiny", minutes=0.0, device="cpu")
    train_splat_diffusion(tmp_path / "run", autoencoder=small_vae, **run)
    for change in ({"prediction": "eps"}, {"prediction": "x0"}, {"regression": True}):
        with pytest.raises(ValueError, match="was trained with (network|regression)"):
            train_splat_diffusion(tmp_path / "run", autoencoder=small_vae, **run | change)
    other = load_splat_vae(small_vae)
    other.moments.weight.add_(0.1)
    save_network(other, tmp_path / "other", {"name": "splat_vae_8"})
    with pytest.raises(ValueError, match="was trained with encoder"):
        train_splat_diffusion(tmp_path / "run", autoencoder=str(tmp_path / "other"), **run)
    with pytest.raises(ValueError, match="config.prediction: got 'noise'"):
        train_splat_diffusion(tmp_path / "new", autoencoder=small_vae, prediction="noise", **run)
    assert not list(tmp_path.glob("new*")) and len(list(tmp_path.glob("latents_*"))) == 2


def test_kept_latents_are_read_back_and_damage_is_refused(tmp_path, vae, monkeypatch):
    import gsgen_lib.systems.splat_diffusion_training as module

    path, preset = tmp_path / "latents.safetensors", dict(toys=2, real=2)
    first = scene_latents(path, vae, preset, 0)
    monkeypatch.setattr(module, "encode_scenes", lambda *a, **k: 1 / 0)
    again = scene_latents(path, vae, preset, 0)
    assert again[1] == first[1] and torch.equal(again[0]["mu"], first[0]["mu"]) and len(first[1]) == 2 + 2 * (len(first[1]) // 2 - 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not whole latents"):
        scene_latents(path, vae, preset, 0)


def test_a_tiny_training_learns_what_the_words_say():
    """Two scenes, each with its word: after 150 steps the loss has fallen well below what ignoring the words allows."""
    net = seeded(lambda: SplatDenoiser(SplatDiffusionConfig(cells=CELLS, widths=(16, 16), embed=32, prediction="x0")), 0)
    scene = torch.randn(2, 4, 6, CELLS, CELLS, generator=gen())
    words, cameras, losses = words_of(["one", "two"]), scene_cameras(32), []
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(150):
        which = torch.randint(2, (8,), generator=gen(step))
        given = Condition(words[which], torch.zeros(8, 4, 6, CELLS, CELLS), torch.zeros(8, 4))
        loss = diffusion_loss(net, net, scene[which], given, cameras, gen(step), regression=True)["loss"]
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    blind = (scene[0] - scene[1]).square().mean().item() / 4  # the best single answer
    assert np.mean(losses[-10:]) < 0.3 * blind


def test_gradient_energy_of_some_pixels_counts_pairs_within_them():
    picture, where = torch.rand(2, 5, 7, 3, generator=gen()), torch.rand(2, 5, 7, generator=gen(1)) < 0.6
    for n in range(2):
        pairs = [((y, x), (y + dy, x + dx)) for y in range(5) for x in range(7) for dy, dx in ((0, 1), (1, 0))
                 if y + dy < 5 and x + dx < 7 and where[n, y, x] and where[n, y + dy, x + dx]]
        wanted = np.mean([(picture[n, *a] - picture[n, *b]).square().mean().item() for a, b in pairs])
        assert gradient_energy(picture, where)[n].item() == pytest.approx(wanted, rel=1e-5)
    assert gradient_energy(picture, torch.zeros_like(where)).isnan().all()
