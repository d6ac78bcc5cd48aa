"""Details of the latent diffusion that shapes do not show: scales, places, shares, captions, and what each option changes."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import gsgen_lib.systems.splat_diffusion_training as training
from gsgen_lib.data.multiview import load_views, toy_views
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.pretrained import load_network, save_network, write_card
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.splat_diffusion import (
    Condition,
    SplatDenoiser,
    SplatDiffusion,
    SplatDiffusionConfig,
    load_splat_diffusion,
    scene_cameras,
    waves,
)
from gsgen_lib.systems.splat_diffusion_metrics import back_camera, hidden_toys, right_by_neighbours, total_variation
from gsgen_lib.systems.splat_diffusion_training import (
    NO_WORDS,
    NO_WORDS_SEEN,
    REAL_SHARE,
    WAYS,
    batches,
    load_latents,
    mirrored_scenes,
    real_scenes,
    save_latents,
    scene_latents,
    scene_views,
    train_splat_diffusion,
)
from gsgen_lib.systems.splat_vae import SplatVAE, SplatVAEConfig
from gsgen_lib.training import seeded
from tests.systems.test_splat_diffusion import CELLS, gen, words_of

SHAPE = (4, 6, CELLS, CELLS)


def denoiser(prediction="v"):
    """One whose layers are all awake, and whose latents are neither centred nor of unit variance."""
    model = seeded(lambda: SplatDenoiser(SplatDiffusionConfig(cells=CELLS, widths=(16, 24), embed=32, prediction=prediction)), 0)
    for part in model.modules():
        w = getattr(part, "weight", None)
        if isinstance(w, torch.nn.Parameter) and not w.any():
            torch.nn.init.normal_(w, std=0.2, generator=gen())
    model.mean.copy_(torch.arange(6.0) / 5 - 0.3)
    model.std.copy_(0.5 + torch.arange(6.0) / 10)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae():
    return seeded(lambda: SplatVAE(SplatVAEConfig(size=32, widths=(16, 16, 16, 16), depths=6)), 0).eval().requires_grad_(False)


@pytest.fixture
def sampler(vae):
    return SplatDiffusion(vae, denoiser(), words_of)


@pytest.fixture(scope="module")
def four():
    return scene_views(2, 5, 32, progress=False).images.float() / 255


# ---- what is given


@pytest.mark.parametrize("places", [(1, 3), (3, 1), (2,), (0, 1, 3)])
@torch.no_grad()
def test_given_views_stand_at_their_places_scaled(sampler, four, places):
    told, d = sampler.condition(["", ""], four[:, list(places)], places), sampler.denoiser
    cameras = Cameras.stack([scene_cameras(32)[list(places)]] * 2)
    alone = sampler.vae.encode(four[:, list(places)], cameras)[0]
    wanted = torch.zeros(2, *SHAPE)
    for k, place in enumerate(places):
        wanted[:, place] = (alone[:, k] - d.mean[:, None, None]) / d.std[:, None, None]
    torch.testing.assert_close(told.views, wanted, atol=1e-5, rtol=1e-5)
    assert told.known.tolist() == [[float(v in places) for v in range(4)]] * 2


@torch.no_grad()
def test_guidance_moves_away_from_nothing_given(sampler, four):
    """What the network is asked without condition holds no word, no view, no mask."""
    asked = []
    forward = sampler.denoiser.forward
    sampler.denoiser.forward = lambda x, t, given, cameras: asked.append((len(x), given)) or forward(x, t, given, cameras)
    sampler.draw(sampler.condition(["a red mug", ""], four[:, [0]], (0,)), 2, guidance_scale=3.0, generator=gen())
    rows = Condition(*(torch.cat([getattr(g, k) for _, g in asked]) for k in ("words", "views", "known")))
    nothing = words_of([""])[0]
    free = (rows.known.sum(1) == 0).nonzero()[:, 0]
    assert len(free) == 4 and not rows.views[free].any()  # two steps, two scenes
    assert all(torch.equal(rows.words[i], nothing) for i in free)
    seen = (rows.known.sum(1) == 1).nonzero()[:, 0]
    assert len(seen) == 4 and rows.views[seen].flatten(1).any(1).all()


@torch.no_grad()
def test_words_are_heard_twice_and_the_time_and_the_mask_once():
    model, cameras, x = denoiser(), scene_cameras(32), torch.randn(1, *SHAPE, generator=gen())
    words = torch.randn(1, 5, 96, generator=gen(1))

    def asked(t=500, words=words, known=(0.0, 0, 0, 0), net=model):
        return net(x, torch.tensor([t]), Condition(words, torch.zeros(1, *SHAPE), torch.tensor([known])), cameras)

    out = asked()
    spread = words.mean(1, keepdim=True) + 2 * (words - words.mean(1, keepdim=True))  # of the same mean
    assert (asked(words=spread) - out).abs().max() > 1e-4  # the attention hears it
    deaf = denoiser()
    for part in deaf.modules():
        if getattr(part, "read", None) is not None:
            part.read.weight.zero_(), part.read.bias.zero_()
    assert (asked(words=words + 1, net=deaf) - asked(net=deaf)).abs().max() > 1e-4  # so does the vector beside the time
    torch.testing.assert_close(asked(words=spread, net=deaf), asked(net=deaf), atol=1e-4, rtol=1e-4)
    for t in (0, 499, 999):
        assert (asked(t=t) - out).abs().max() > 1e-4
    assert (asked(known=(1.0, 0, 0, 0)) - out).abs().max() > 1e-4
    other = model(x, torch.tensor([500]), Condition(words, torch.zeros(1, *SHAPE), torch.zeros(1, 4)), cameras[[1, 2, 3, 0]])
    assert (other - out).abs().max() > 1e-4  # rays


def test_times_become_waves_of_the_textbook():
    found = waves(torch.tensor([0, 7, 999]))
    for row, t in zip(found, (0, 7, 999), strict=True):
        for k in (0, 1, 16, 31):
            frequency = 10_000.0 ** (-k / 32)
            assert row[k].item() == pytest.approx(np.cos(t * frequency), abs=1e-3)
            assert row[32 + k].item() == pytest.approx(np.sin(t * frequency), abs=1e-3)


# ---- drawing


@torch.no_grad()
def test_each_choice_of_the_sampler_is_heard(sampler):
    told, noise = sampler.condition(["a red mug"]), torch.randn(1, *SHAPE, generator=gen())
    times, forward = [], sampler.denoiser.forward
    sampler.denoiser.forward = lambda x, t, given, cameras: times.append(int(t[0])) or forward(x, t, given, cameras)

    def drawn(seed=0, **more):
        return sampler.draw(told, **{"steps": 10, "noise": noise, "generator": gen(seed)} | more)

    plain = drawn()
    assert times[0] == 999 and torch.equal(plain, drawn(1))  # no noise on the way
    times.clear()
    assert not torch.equal(drawn(spacing="leading"), plain) and times[0] == 900 and times[-1] == 0
    for more in ({"eta": 1.0}, {"sampler": "ddpm"}):
        assert not torch.equal(drawn(0, **more), drawn(1, **more)) and torch.equal(drawn(0, **more), drawn(0, **more))
    assert torch.equal(sampler.draw(told, 10, generator=gen(7)), sampler.draw(told, 10, noise=torch.randn(1, *SHAPE, generator=gen(7))))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn(eta=1.0)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_the_mean_is_that_of_one_step_from_the_last_time(vae):
    model = denoiser("x0")
    model.forward = lambda x, t, given, cameras: 0.5 * x + given.words.mean() + (t[0] == 999)
    sampler = SplatDiffusion(vae, model, words_of)
    told = sampler.condition(["a red mug", "a red mug"])
    found = sampler.mean(told, 8, gen(3))
    noise = torch.randn(16, *SHAPE, generator=gen(3)).unflatten(0, (8, 2)).mean(0)
    wanted = 0.5 * noise + told.words.mean() + 1
    torch.testing.assert_close(found, wanted * model.std[:, None, None] + model.mean[:, None, None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("call,message", [
    (lambda s, x: s.condition([""], x, (0.0,)), "places: got"),
    (lambda s, x: s.condition([""], x, (-1,)), "places: got"),
    (lambda s, x: s.condition([""], 255 * x, (0,)), "rgba: got numbers"),
    (lambda s, x: s.condition([""], torch.full_like(x, torch.nan), (0,)), "rgba: got numbers from nan"),
    (lambda s, x: s.condition([""], x.double(), (0,)), "rgba: got torch.float64"),
    (lambda s, x: s.condition([""], x.numpy().tolist(), (0,)), "rgba: got shape"),
    (lambda s, x: s.draw(s.nothing(1), guidance_scale=float("nan")), "guidance_scale: got nan"),
    (lambda s, x: s.draw(s.nothing(1), steps=2.5), "steps: got 2.5"),
    (lambda s, x: s.draw(s.nothing(1), steps=-3), "steps: got -3"),
    (lambda s, x: s.draw(s.nothing(1), sampler="ddpm", eta=0.5), "eta: got 0.5"),
    (lambda s, x: s.draw(s.nothing(1), eta=2.0), "eta: got 2.0"),
    (lambda s, x: s.draw(s.nothing(1), spacing="even"), "spacing: got 'even'"),
    (lambda s, x: s.draw(s.nothing(2)[[]]), "given: got"),
    (lambda s, x: s.draw(Condition(torch.zeros(1, 5, 96), torch.zeros(1, 4, 6, 8, 8), torch.zeros(1, 4))), "given: got"),
    (lambda s, x: s.draw(Condition(torch.zeros(2, 5, 96), torch.zeros(1, *SHAPE), torch.zeros(1, 4))), "given: got"),
])
def test_wrong_input_is_named(sampler, four, call, message):
    with pytest.raises(ValueError, match=message):
        call(sampler, four[:1, :1])


# ---- training batches


def known_latents(n=6, toys=4):
    """Latents that say which scene they are of, and captions to match."""
    number = torch.arange(float(n))
    found = {"mu": number[:, None, None, None, None].expand(n, *SHAPE).clone(), "logvar": torch.full((n, *SHAPE), -20.0),
             "known": torch.zeros(n, len(WAYS), 4), "alone": torch.zeros(n, len(WAYS), *SHAPE)}
    found["known"][:, 1, 0], found["known"][:, 2, 3], found["known"][:, 3, :2], found["known"][:, 4, 1:] = 1, 1, 1, 1
    found["alone"] += 100 * number[:, None, None, None, None, None] + 10 * torch.arange(4.0)[:, None, None, None]
    return {k: v.half() for k, v in found.items()}, [f"caption {i}" for i in range(n)], toys


def test_a_batch_pairs_scenes_captions_and_views():
    found, captions, toys = known_latents()
    model, of = denoiser(), words_of(["", *captions]).half().float()
    draw, ways, dropped, real = batches(found, captions, words_of, model, toys, 1000), [], [], []
    for seed in range(6):
        z, words, alone, known = draw(gen(seed))
        scene = model.unscale(z).mean((1, 2, 3, 4)).round().long()
        torch.testing.assert_close(model.unscale(z), scene.float()[:, None, None, None, None].expand_as(z), atol=1e-2, rtol=1e-2)
        which = torch.cdist(words.flatten(1), of.flatten(1)).argmin(1)  # 0: no words
        assert ((which == 0) | (which == scene + 1)).all()
        own = 100 * scene[:, None].float() + 10 * torch.arange(4.0)  # (B, V)
        got = (model.unscale(alone).mean((2, 3, 4)))[known == 1]
        torch.testing.assert_close(got, own[known == 1], atol=0.5, rtol=1e-2)
        assert not alone[known == 0].any()
        way = known.sum(1) + (known[:, 3] * (known.sum(1) == 1) * 10)
        ways.append(way), dropped.append(which == 0), real.append(scene >= toys)
    way, dropped, real = (torch.cat(x) for x in (ways, dropped, real))
    for value, share in zip((0, 1, 11, 2, 3), WAYS.values(), strict=True):
        assert (way == value).float().mean().item() == pytest.approx(share, abs=0.02)
    assert real.float().mean().item() == pytest.approx(REAL_SHARE, abs=0.015)
    assert dropped[way == 0].float().mean().item() == pytest.approx(NO_WORDS, abs=0.03)
    assert dropped[way > 0].float().mean().item() == pytest.approx(NO_WORDS_SEEN, abs=0.03)
    state = torch.get_rng_state()
    draw(gen())
    assert torch.equal(torch.get_rng_state(), state)


def test_latents_of_a_batch_are_drawn_from_their_posteriors():
    found, captions, toys = known_latents()
    found["mu"].zero_(), found["logvar"].fill_(2 * np.log(3.0))
    model = denoiser()
    z = model.unscale(batches(found, captions, words_of, model, toys, 400)(gen())[0])
    assert z.mean().item() == pytest.approx(0, abs=0.05) and z.std().item() == pytest.approx(3, rel=0.02)


def test_scenes_are_of_their_split_in_their_order():
    a, b = scene_views(3, 1, 8, progress=False), scene_views(2, 1, 8, progress=False, first=1)
    assert torch.equal(a.images[1:], b.images) and a.captions[1:] == b.captions and a.ids[1:] == b.ids
    for split in ("val", "test"):
        assert set(real_scenes(split, 32, 3).ids) <= set(load_views(split, progress=False).ids)
    assert set(real_scenes("train", 32, 3).ids) <= set(load_views("train", limit=3, progress=False).ids)
    views = real_scenes("val", 32, 2)
    assert mirrored_scenes(views).captions == views.captions and not torch.equal(mirrored_scenes(views).images, views.images)


def test_latents_are_made_in_shards_that_survive_an_interruption(tmp_path, vae, monkeypatch):
    monkeypatch.setattr(training, "SHARD", 2)
    path, preset, encode, count = tmp_path / "latents_x_5_0.safetensors", dict(toys=5, real=2), training.encode_scenes, []

    def stops(*args, **more):
        count.append(len(args[1]))
        if len(count) == 3:
            raise KeyboardInterrupt
        return encode(*args, progress=False, **more)

    monkeypatch.setattr(training, "encode_scenes", stops)
    with pytest.raises(KeyboardInterrupt):
        scene_latents(path, vae, preset, 0)
    assert count == [2, 2, 1] and not path.exists()
    found, captions = scene_latents(path, vae, preset, 0)
    real = len(real_scenes("train", 32, 2))
    assert count == [2, 2, 1, 1, real, real] and len(captions) == len(found["mu"]) == 5 + 2 * real
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    whole = scene_views(5, training.TOY_SEED, 32, progress=False)
    assert captions[:5] == whole.captions
    mu = vae.encode(whole.images[4:5].float() / 255, Cameras.stack([scene_cameras(32)]))[0]
    torch.testing.assert_close(found["mu"][4:5].float(), mu, atol=2e-3, rtol=2e-3)
    again = scene_latents(tmp_path / "other.safetensors", vae, preset, 0)[0]
    assert all(torch.equal(again[k], found[k]) for k in found)


def test_damaged_latents_are_refused(tmp_path, vae):
    found, captions, _ = known_latents()
    path = tmp_path / "latents.safetensors"
    save_latents(path, found, captions)
    assert torch.equal(load_latents(path, vae)[0]["alone"], found["alone"])
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[-1000] ^= 1  # one bit of one number
    path.write_bytes(bytes(broken))
    with pytest.raises(ValueError, match="not whole latents of scenes .sha256."):
        load_latents(path, vae)
    with safe_open(tmp_path / "latents.safetensors", "pt") as file:
        facts = file.metadata()
    for change, message in (({"mu": found["mu"][:5]}, "mu"), ({"mu": found["mu"] * torch.nan}, "mu"),
                            ({"alone": found["alone"][:, :, :3].clone()}, "alone")):
        save_latents(path, found | change, captions)
        with pytest.raises(ValueError, match=f"not whole latents of scenes .{message}."):
            load_latents(path, vae)
    save_file(found, path, {"captions": json.dumps(captions)})
    with pytest.raises(ValueError, match="KeyError"):
        load_latents(path, vae)
    save_file({k: v for k, v in found.items() if k != "alone"}, path, facts)
    with pytest.raises(ValueError, match="KeyError"):
        load_latents(path, vae)


def test_options_reach_the_denoiser_and_its_loss(tmp_path, vae, monkeypatch):
    save_network(vae, tmp_path / "vae", {"name": "splat_vae_8"})
    loss, asked = training.diffusion_loss, []
    monkeypatch.setattr(training, "diffusion_loss", lambda *a: asked.append((a[1].config.prediction, a[6])) or loss(*a))
    run = dict(preset="tiny", steps=1, autoencoder=str(tmp_path / "vae"), device="cpu")
    for name, more, wanted in (("eps", {"prediction": "eps"}, ("eps", False)), ("r", {"regression": True}, ("x0", True))):
        card = train_splat_diffusion(tmp_path / name, **run | more)
        assert asked.pop() == wanted and not asked
        sampler = load_splat_diffusion(tmp_path / name / "model")
        assert sampler.denoiser.config.prediction == wanted[0] and ("--regression" in card["command"]) == wanted[1]
    stored = sampler.denoiser
    with safe_open(next(tmp_path.glob("latents_*")), "pt") as file:
        mu = file.get_tensor("mu").float()
    torch.testing.assert_close(stored.mean, mu.mean((0, 1, 3, 4)), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(stored.std, mu.std((0, 1, 3, 4)), atol=2e-3, rtol=2e-3)
    assert load_splat_diffusion(tmp_path / "r" / "model", autoencoder=tmp_path / "vae").vae.config == vae.config


def test_a_training_may_begin_with_weights_and_another_share_of_real_objects(tmp_path, vae, monkeypatch):
    save_network(vae, tmp_path / "vae", {"name": "splat_vae_8"})
    run, asked, draws = dict(preset="tiny", autoencoder=str(tmp_path / "vae"), device="cpu"), [], training.batches
    monkeypatch.setattr(training, "batches", lambda *a, **more: asked.append(more["real_share"]) or draws(*a, **more))
    first = train_splat_diffusion(tmp_path / "first", **run)
    card = train_splat_diffusion(tmp_path / "on", start=str(tmp_path / "first" / "model"), real_share=0.4, steps=1, **run)
    assert asked == [REAL_SHARE, 0.4] and card["start"]["sha256"] == first["sha256"]
    assert "--real-share 0.4" in card["command"] and "--start" in card["command"]
    old, new = (load_splat_diffusion(tmp_path / name / "model").denoiser for name in ("first", "on"))
    fresh = seeded(lambda: SplatDenoiser(old.config), 0)
    near, far = ((other.time[0].weight - old.time[0].weight).abs().max() for other in (new, fresh))
    assert torch.equal(old.mean, new.mean) and near < far
    with pytest.raises(ValueError, match="was trained with real_share=0.4, wanted 0.1"):
        train_splat_diffusion(tmp_path / "on", start=str(tmp_path / "first" / "model"), steps=1, **run)
    with pytest.raises(ValueError, match="start: got a network of"):
        train_splat_diffusion(tmp_path / "x", start=str(tmp_path / "first" / "model"), prediction="eps", **run)
    with pytest.raises(ValueError, match="real_share: got 1.5"):
        train_splat_diffusion(tmp_path / "x", real_share=1.5, **run)


# ---- loading, and reading


@pytest.mark.parametrize("damage", ["nan", "garbage", "list", "null"])
def test_a_network_with_a_valid_card_but_wrong_contents_is_refused(tmp_path, damage):
    model, folder = denoiser(), tmp_path / "model"
    save_network(model, folder, {"name": "test"})
    load_network(folder, SplatDenoiser, SplatDiffusionConfig)
    if damage == "nan":
        weights = {k: v.half() for k, v in model.state_dict().items()}
        weights["mean"][0] = torch.nan
        save_file(weights, folder / "model.safetensors")
    elif damage == "garbage":
        (folder / "model.safetensors").write_bytes(b"nothing like it")
    else:
        (folder / "config.json").write_text({"list": "[1]", "null": "null"}[damage])
    write_card(folder, {"name": "test"})
    with pytest.raises(ValueError, match="no SplatDenoiser"):
        load_network(folder, SplatDenoiser, SplatDiffusionConfig)


def test_weights_that_half_precision_cannot_hold_are_not_saved(tmp_path):
    model = denoiser()
    model.mean[0] = 1e6
    with pytest.raises(ValueError, match="weights of mean are not finite"):
        save_network(model, tmp_path / "model", {"name": "test"})
    assert not (tmp_path / "model").exists()


def test_the_reader_looks_where_the_pictures_differ_alone():
    case = next(c for c in hidden_toys(14, size=48) if c.toy.family == "cat")
    same = (case.pictures[:, None] - case.pictures[None]).abs().amax((0, 1, 4)) <= 0.05
    for k in range(len(case.pictures)):
        painted = case.pictures[[k]].clone()
        painted[:, same] = torch.rand(painted[:, same].shape, generator=gen(k))  # anything elsewhere
        assert case.read(painted).item() == k
    other = hidden_toys(14, seed=1, size=48)
    assert all(a.toy.attributes != b.toy.attributes for a, b in zip(other, hidden_toys(14, size=48), strict=True))
    seen = render_mesh(case.toy.mesh, back_camera(48)).rgba
    assert np.abs(seen - case.rgba[2].numpy()).max() < 0.02  # the camera that reads stands where the third view does


def test_distances_of_odds_and_votes_of_neighbours():
    assert total_variation(torch.tensor([5.0, 5.0]), torch.tensor([0.5, 0.5])) == 0
    assert total_variation(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.5, 0.5, 0.0])) == pytest.approx(0.5)
    x = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [9.2]])
    assert right_by_neighbours(x, list("aaabbbb"), k=3) == pytest.approx(6 / 7)  # by hand: 0.3 is among three of a


def test_a_list_of_toys_begins_at_0_or_later():
    with pytest.raises(ValueError, match="first >= 0"):
        toy_views(1, 0, 8, 4, points=8, first=-1)
