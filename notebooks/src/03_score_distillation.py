# %% [markdown]
# # 03 · Score distillation
#
# CPU about 120 s · GPU not needed, used where there is one · the prior was trained for some hours, its checkpoint is
# shipped
#
# <!-- colab-badge -->
#
# 75 minutes to read, two hours for the exercises. Prerequisite: notebook 02 (noise, DDIM, guidance); the chain rule.
#
# The prior of the last lesson has only ever seen pictures. In this lesson it makes a 3D object: Gaussians are rendered, the prior
# says what is wrong with the picture, and the Gaussians move. No 3D data, no training; one loop.

# %% [markdown]
# ## You will be able to
#
# - **write** the gradient of score distillation, **explain** what it leaves out, and **prove** by autograd that it never enters
#   the network (section 1, exercise 1);
# - **explain** why distillation seeks modes where sampling covers them, and why noise must fall (section 2, exercise 3);
# - **measure** what large guidance does to colours (section 3);
# - **make** Gaussians from a prompt, and see fog and its cure (section 4);
# - **provoke** an object that is alike from all sides, and cure it by saying the view (section 5, exercise 4);
# - **compare** score distillation with interval score matching (section 6, exercise 2).
#
# ## Set-up
#
# After the imports come the knobs. The first cell then makes an object from a prompt. It begins with 1,000 grey Gaussians in
# a ball. Predict: what appears first, the outline, the colours, or the face?

# %% tags=["setup"]
# (the set-up cell is inserted here)

# %% tags=["shared"]
import textwrap
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from gsgen_lib import viz
from gsgen_lib.checks import check, cmp, nb03
from gsgen_lib.data.captioned_views import VIEW_WORDS
from gsgen_lib.diffusion import (GaussianMixture, alphas_cumprod_of, convert, ddim_step, ddpm_sample, guide, guided,
                                 linear_betas, q_sample)
from gsgen_lib.doctor import time_and_memory
from gsgen_lib.pretrained import load_or_train
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.dream_metrics import around, caption_score, clipped, fronts, saturation, sharpness, true_toy
from gsgen_lib.systems.dreamgaussian import DreamConfig, ball, dream
from gsgen_lib.systems.score_distillation import (ViewPrompts, annealed_time, distillation_loss, ism_gradient, random_time,
                                                  sds_gradient, sds_loss, view_shares)
from gsgen_lib.training import seeded

STARTED = time.perf_counter()
FAST = True
SEED = 0
STEPS = 150 if FAST else 400  # of an object
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gen(seed=SEED):
    return torch.Generator().manual_seed(seed)


# %% tags=["main"] alt="A grey ball turns into a robot, seen from the front; then the result from eight sides, and a true toy"
prior = load_or_train("prior", device=DEVICE)
scorer = load_or_train("prompt_scorer", device=DEVICE)
caption = "a brown robot"
made = dream(prior, caption, DreamConfig(steps=STEPS), generator=gen(), snapshot_every=STEPS // 7, progress=False)


def look(gaussians, cameras=around(8), background=(1.0, 1.0, 1.0)):
    """Renders (V, H, W, 3) on the CPU."""
    return rasterize(gaussians, cameras.to(gaussians.device), background).rgb.clamp(0, 1).cpu()


stages = [ball(1000, 0.4, gen()), *(scene.to("cpu") for _, scene in made.snapshots)]
growing = torch.cat([look(scene, around(1)) for scene in stages])[:8]
truth = true_toy(caption, np.random.default_rng(SEED), around(8))
display(viz.compare({"front view": growing}, [f"step {k * (STEPS // 7)}" for k in range(8)], cell=1.0))
SIDES = ["0°, front", "45°", "90°, side", "135°", "180°, back", "225°", "270°, side", "315°"]
viz.compare({"the result": look(made.gaussians), "a true toy": truth}, SIDES, cell=1.0)

# %% [markdown]
# **What to notice.** The first strip is the front view while it is made, from the grey ball on. The second is the result from
# eight sides; below it stands a toy of the same caption from the course's generator. The prior was trained on renders of such
# toys. The outline comes first (step 21), then parts (antenna and legs, 63 to 105), and colours change to the end: brown was
# asked for, a greyish green with a red back came. The order is made on purpose, by noise that falls; section 2 says why. A face
# does not come at all.
#
# ## 1 · What is wrong with this picture?
#
# A render $x$ is a function of the parameters $\theta$ of the Gaussians. What should $\theta$ do to make $x$ look like a
# picture of a robot? Ask the denoiser. Noise the render, and let it guess the noise:
#
# $$x_t = \sqrt{\bar\alpha_t}\,x + \sqrt{1-\bar\alpha_t}\,\varepsilon,\qquad \hat\varepsilon = \hat\varepsilon(x_t, t)$$
#
# If $x$ is a plausible picture, the guess is good; so take the squared error as a loss? Its gradient is
#
# $$2\,(\hat\varepsilon - \varepsilon)\;\Bigl(\frac{\partial\hat\varepsilon}{\partial x_t}\sqrt{\bar\alpha_t}\Bigr)\;
# \frac{\partial x}{\partial\theta}$$
#
# The factor in the middle is the Jacobian of a whole U-Net: expensive, and at low noise badly behaved. **Score distillation**
# (SDS) leaves it out, and weights by $w(t)$ = `weight`:
#
# $$g = w(t)\,(\hat\varepsilon - \varepsilon),\qquad \frac{\partial L}{\partial\theta} := g\,\frac{\partial x}{\partial\theta}$$
#
# Why does that make sense? The mean of $\varepsilon$ is 0, and $\hat\varepsilon = -\sqrt{1-\bar\alpha_t}$ times the slope of
# the log density of noised pictures (notebook 02). So $-g$ points, on average, uphill in that density.
#
# With autograd one needs a *scalar* whose gradient is $g$, divided by the batch size $B$. Hold $x - g$ fixed as a target:


# %%
# NBVAL_CHECK_OUTPUT
def my_sds_loss(predict, x, t, eps, abar):
    """x, eps (B, ...), t one step -> a scalar whose gradient is (1 - abar) (eps_hat - eps) / B."""
    with torch.no_grad():
        x_t = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * eps
        g = (1 - abar[t]) * (predict(x_t, t) - eps)
    target = (x - g).detach()
    return 0.5 * (x - target).square().sum() / len(x)


abar = alphas_cumprod_of(linear_betas(1000)).double()
network = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(),
                                             torch.nn.Linear(32, 2)).double(), SEED)
x, eps = torch.randn(2, 6, 2, generator=gen(), dtype=torch.float64)
t = torch.tensor(300)
slopes = {}
for name, loss in {"mine": lambda x: my_sds_loss(lambda x_t, t: network(x_t), x, t, eps, abar),
                   "library": lambda x: sds_loss(lambda x_t, t: network(x_t), x, t, eps, abar),
                   "squared error": lambda x: (network(q_sample(x, eps, abar[t])) - eps).square().sum() / len(x)}.items():
    network.zero_grad()
    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    slopes[name] = leaf.grad
    print(f"{name:<14} reaches the weights: {network[0].weight.grad is not None}")
formula = (1 - abar[t]) * (network(q_sample(x, eps, abar[t])) - eps) / len(x)
cmp("mine: formula", slopes["mine"], formula)
cmp("library", slopes["library"], slopes["mine"])
print("the gradient of the squared error is another:", bool((slopes["squared error"] - formula).abs().max() > 0.1))

# %% [markdown]
# **What to notice.** The last line refutes a common mistake: the SDS gradient is *not* the gradient of the squared error.
# And no weight of the network gets a gradient: a step only *asks* the U-Net, two or three times with guidance, and never goes
# back through it.
#
# Where do the arrows $-g$ point? That does not depend on the weight; how long they are does. Two weights of the library's
# `WEIGHTS` appear in this lesson:
#
# | `weight` | $w(t)$ | what for |
# |---|---|---|
# | `"sigma2"` | $1-\bar\alpha_t$ | DreamFusion's choice, and that of `my_sds_loss`: steps are small at the clean end |
# | `"x0"` | $\sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$ | an arrow ends exactly at the denoiser's guess of the clean point |
#
# Take data with two clusters, at $(\pm 1, 0)$, and the exact denoiser of notebook 02. Predict for a point at $(0.6, 0.6)$, the
# black dot: where does its arrow lead at $t = 100$, where at $t = 700$?

# %% alt="Mean arrows of distillation around two clusters: to the nearest at low noise, to the middle of both at high"
# NBVAL_CHECK_OUTPUT
two = GaussianMixture(torch.tensor([[-1.0, 0], [1, 0]]).double(), torch.full((2,), 0.2).double(), torch.ones(2).double())
exact = two.denoiser(abar)
line = torch.linspace(-1.8, 1.8, 13).double()
field = torch.cartesian_prod(line, line)  # (169, 2)


def mean_arrow(points, t, draws=200):
    """-g, averaged over noises; points (P, 2) -> (P, 2)."""
    many = points.repeat(draws, 1)
    g = sds_gradient(exact, many, torch.tensor(t), torch.randn(many.shape, generator=gen(), dtype=torch.float64), abar, "x0")
    return -g.reshape(draws, *points.shape).mean(0)


with viz.style():
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 3.2), sharey=True)
    for panel, step in zip(panels, (100, 700), strict=True):
        panel.quiver(*field.T, *mean_arrow(field, step).T, angles="xy", scale_units="xy", scale=4, width=0.004, color="#0072B2")
        panel.scatter(*two.means.T, marker="+", s=60, color="#D55E00", zorder=3)
        panel.scatter(0.6, 0.6, s=20, color="#000000", zorder=3)
        panel.quiver(0.6, 0.6, *mean_arrow(torch.tensor([[0.6, 0.6]]).double(), step)[0], angles="xy", scale_units="xy", scale=1,
                     width=0.008, zorder=3)
        panel.set(title=f"t = {step}", xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
    plt.show()
for step in (100, 700):
    start = torch.tensor([[0.6, 0.6]]).double()
    aim = start + mean_arrow(start, step, 4000)
    print(f"t = {step}: the arrow from (0.6, 0.6) aims at x = {aim[0, 0].item():.1f}")

# %% [markdown]
# **What to notice.** Blue arrows (weight `"x0"`) are drawn at a quarter of their length, the black one whole; the crosses are
# the clusters. At $t = 100$ it leans to the nearer cluster, at $t = 700$ it aims at the *middle* of both, where there is no data
# at all. A point near the middle line, like $(0.3, 1)$, gets a mean of both answers even at $t = 100$. High noise knows only
# what all data have in common.
#
# ## 2 · Seeking a mode, and why noise must fall
#
# Now follow the arrows. 300 points start anywhere, and take 400 steps. `t` is random in one run, and in the other falls
# from noisy to clean (DreamGaussian's annealing):

# %%
# NBVAL_CHECK_OUTPUT
def my_annealed_time(step, steps, low=20, high=980):
    return max(low, min(high, round((1 - step / steps) * 1000)))


cmp("falling t", [my_annealed_time(k, 400) for k in range(400)], [annealed_time(k, 400) for k in range(400)])


def distil(scale=1.0, annealed=True, weight="x0", steps=400, lr=0.2, told=exact, seed=SEED):
    """Points (300, 2) that followed g by plain gradient descent, with guidance towards the denoiser `told`."""
    g = gen(seed)
    x = torch.randn(300, 2, generator=g, dtype=torch.float64)
    for k in range(steps):
        t = torch.tensor(annealed_time(k, steps)) if annealed else random_time(300, g)
        eps = torch.randn(x.shape, generator=g, dtype=torch.float64)
        x = x - lr * sds_gradient(lambda x_t, t: guide(exact(x_t, t), told(x_t, t), scale), x, t, eps, abar, weight)
    return x


# %% [markdown]
# Sampling starts at noise and ends at data: its points are spread like the data. Will those of `distil` be? Predict before you
# look: is a cluster of distilled points as wide as one of data, wider, or tighter?

# %% alt="Three clouds of points: sampled, distilled with falling noise, distilled with random noise"
# NBVAL_CHECK_OUTPUT
clouds = {"sampled (DDPM)": ddpm_sample(exact, torch.randn(300, 2, generator=gen(), dtype=torch.float64), abar, 200,
                                        generator=gen(1)),
          "SDS, t falls": distil(), "SDS, t random": distil(annealed=False)}
with viz.style():
    figure, panels = plt.subplots(1, 3, figsize=(8, 2.6), sharey=True)
    for panel, (name, x) in zip(panels, clouds.items(), strict=True):
        nearest = torch.cdist(x, two.means).argmin(1)  # (300,)
        off = x - two.means[nearest]
        within = np.mean([(off[nearest == m] - off[nearest == m].mean(0)).square().mean().sqrt() for m in (0, 1)])
        panel.scatter(*x.T, s=3, color="#0072B2")
        panel.scatter(*two.means.T, marker="+", s=60, color="#D55E00")
        panel.set(title=name, xlim=(-2, 2), ylim=(-1.2, 1.2), xticks=[], yticks=[], aspect="equal")
        away = off.square().mean().sqrt()  # of one coordinate, as `within` is
        print(f"{name:<15} in widths of the data: width {within / 0.2:.1f}, distance to the nearest centre {away / 0.2:.1f}")
    plt.show()

# %% [markdown]
# **What to notice.** Sampled clusters are as wide as the data's. Distilled with falling $t$ they are tighter: every point climbs
# to a *mode*, and what width is left comes from the noise of the last steps. So distillation gives the typical robot, again
# and again, and not the variety of robots. With random $t$ the points end *between* the clusters, drawn to the middle by
# the noisy half of the steps. Falling $t$ first decides for a cluster, then goes there. `gsgen bench sds` repeats this with
# three seeds.
#
# ## 3 · Guidance burns
#
# The arrow of a caption is weak. DreamFusion makes it loud: guidance 100, where samplers use 7. What does that cost? First on
# points: the caption "right" means the cluster at $(1, 0)$, so a good point has distance 1 from the origin. (From here on the
# weight is `"sigma2"`, as for pictures: `"x0"` grows without bound towards pure noise, and so would these distances.)

# %%
# NBVAL_CHECK_OUTPUT
right = two.given(torch.tensor([0, 1]), 1).denoiser(abar)
for annealed in (False, True):
    far = [distil(s, annealed, "sigma2", told=right).norm(dim=1).mean().item() for s in (1, 7.5, 25, 100)]
    print(f"t {'falls ' if annealed else 'random'}: distance from the origin at guidance 1, 7.5, 25, 100:",
          ", ".join(f"{r:.1f}" for r in far))

# %% [markdown]
# **What to notice.** With random $t$ guidance carries the points far outside the data. Falling $t$ calls them back at the end,
# when the denoiser is nearly sure of the cluster, and the two answers that guidance compares agree.
#
# And pictures? `paint` distils the prior into four *latents* without any 3D: the smallest possible scene. It takes 80 steps, with
# falling $t$. (The rate is 0.05 here. Adam's steps are equally long for any guidance; at 0.02 they are too short, in 80 steps, to
# get far from the data.) Predict what guidance 100 does to the colours, now that falling $t$ has just saved the points.


# %%
shelf = ["a brown robot", "a red mug with white dots", "a blue boat", "a green chair"]
short = [textwrap.fill(name, 14) for name in shelf]
told = prior.encode_prompt([f"{name}, front view" for name in shelf])  # (4, L, D)
empty = prior.encode_prompt([""]).expand_as(told)


def paint(gradient_of, steps=80, lr=0.02):
    """Adam on latents (4, C, h, w) along gradient_of(z, t, generator); then pictures (4, H, W, 3)."""
    g = gen()
    z = (0.1 * torch.randn(4, *prior.latent_shape, generator=g)).to(DEVICE).requires_grad_()
    adam = torch.optim.Adam([z], lr=lr, betas=(0.9, 0.99))
    for k in range(steps):
        loss = distillation_loss(z, gradient_of(z, annealed_time(k, steps), g))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return prior.decode(z.detach()).cpu()


def sds_with(scale):
    ask = guided(prior.predict_eps, told, empty, scale)
    return lambda z, t, g: sds_gradient(ask, z, torch.tensor(t), torch.randn(z.shape, generator=g).to(z), prior.alphas_cumprod)


# %% alt="Four toys, distilled into latents at guidance 1, 10, 30 and 100"
# NBVAL_CHECK_OUTPUT
burnt = {s: paint(sds_with(s), lr=0.05) for s in (1, 10, 30, 100)}
colour = {s: saturation(x[:, 16:48, 16:48]) for s, x in burnt.items()}  # of the middle: mostly the toy
print("saturation grows from guidance 10 to 100:", colour[10] < colour[30] < colour[100])
print("more colour values are clipped to 0 or 1 at 100 than at 1:", clipped(burnt[100]) > clipped(burnt[1]) + 0.005)
with torch.no_grad():  # what guidance multiplies, near the clean end
    t, z, point = torch.tensor(40), prior.encode_image(burnt[10].to(DEVICE)), two.means[1:].repeat(300, 1)
    z, point = (q_sample(x, torch.randn(x.shape, generator=gen()).to(x), levels[t])
                for x, levels in ((z, prior.alphas_cumprod), (point, abar)))
    gaps = {"network": prior.predict_eps(z, t, told) - prior.predict_eps(z, t, empty), "exact": right(point, t) - exact(point, t)}
print("answer with caption minus answer without, at t = 40:",
      ", ".join(f"{name} {gap.square().mean().sqrt():.1f}" for name, gap in gaps.items()))
viz.compare({f"guidance {s}\nsaturation {colour[s]:.2f}": x for s, x in burnt.items()}, short, cell=1.25)

# %% [markdown]
# **What to notice.** Beside each row stands the saturation of the pictures' middle, 0 for grey and 1 for pure colours. At 1
# the forms are there, but pale and without parts. At 10 boat and robot gain parts; the mug fails at every guidance. Beyond, the
# colours grow louder, not truer, and outlines fray. (Backgrounds are any colour, since the prior learned on all of them.)
# Falling $t$ does not call these back as it did the points. Near a cluster and at little noise the exact denoiser gives the same
# answer with and without a caption; the network does not, and guidance multiplies what is left. Our prior needs 10, where
# DreamGaussian gives Stable Diffusion 100.
#
# ## 4 · In three dimensions
#
# Now $x$ is a render. One step: draw cameras, render on a *random* background, encode, ask the prior for noise, step. The prior
# works on latents $z$ = `encode_image(x)`, and autograd carries the gradient through the encoder and the rasterizer to the
# Gaussians. `ViewPrompts` gives the caption's text features for each camera; section 5 opens that box. Why a random background?
# Before a wall that is always white, white fog costs nothing.


# %%
def my_dream_step(raw, prompts, t, generator, guidance_scale=10.0, views=4):
    """raw: Gaussians that ask for gradients. One step of distillation leaves them in raw.means.grad and so on."""
    azimuths = (360 * torch.rand(views, generator=generator)).tolist()
    elevations = (60 * torch.rand(views, generator=generator) - 10).tolist()
    cameras = Cameras.orbit(views, azimuth=azimuths, elevation=elevations, width=64, height=64).to(DEVICE)
    background = torch.rand(3, generator=generator).to(DEVICE)
    z = prior.encode_image(rasterize(raw, cameras, background).rgb.clamp(0, 1))  # (V, C, h, w)
    text = prompts(azimuths, elevations)  # (V, L, D)
    ask = guided(prior.predict_eps, text, prompts.empty.expand_as(text), guidance_scale)
    eps = torch.randn(z.shape, generator=generator).to(z)
    loss = sds_loss(ask, z, torch.tensor(t), eps, prior.alphas_cumprod)
    loss.backward()
    return loss.item()


scene = ball(1000, 0.4, gen()).to(DEVICE)
scene.means.requires_grad_()
scene.colors.requires_grad_()
my_dream_step(scene, ViewPrompts(prior, caption), 600, gen())
print("nearly all Gaussians are moved by four views:", bool((scene.means.grad.norm(dim=1) > 0).float().mean() > 0.9))

# %% [markdown]
# The library's `dream` adds what you know from notebook 01: Adam with a rate for each kind of number, and densification. Which
# Gaussians should be split? Those that the gradient of the loss, mostly that of distillation, pulls hardest in the picture. It
# has no natural size (it grows with guidance), so the threshold is a quantile. The log of the first object shows it at work.
# Predict: what happens to the pull right after the number of Gaussians jumps?

# %% alt="Pull of the gradient and number of Gaussians against the step"
# NBVAL_CHECK_OUTPUT
log = made.log
jumps = [row["step"] for row, before in zip(log[1:], log[:-1], strict=True) if row["gaussians"] != before["gaussians"]]
with viz.style():
    figure, panels = plt.subplots(1, 3, figsize=(9.5, 2.5), layout="constrained")
    names = {"gaussians": "Gaussians", "pull": "mean 2D gradient", "loss": "loss"}
    for panel, (key, name) in zip(panels, names.items(), strict=True):
        panel.plot([row["step"] for row in log], [row[key] for row in log], color="#0072B2")
        panel.set(xlabel="step", ylabel=name, yscale="linear" if key == "gaussians" else "log")
        for step in jumps:
            panel.axvline(step, color="#999999", linewidth=0.8)
    plt.show()
print("Gaussians change at steps", jumps)

# %% [markdown]
# **What to notice.** The grey lines mark densification. Pull and loss follow the noise level: $w = 1-\bar\alpha_t$ is small at
# the clean end; at the noisy end $x_t$ is nearly $\varepsilon$ itself, so $\hat\varepsilon$ is, too; in between both are
# largest. (The loss at the end is mostly another term, that of the next paragraph.) DreamGaussian's loss has a spike at each
# densification. Neither pull nor loss jumps here: the 15 % that are pulled hardest are cloned or split, into parts that add up to
# nearly the same picture, and transparent ones are dropped.
#
# Now the failure on purpose. Nothing in the loss says that an object is solid. `weight_opaque` is the library's answer: it adds
# the mean of $\alpha(1-\alpha)$, which is 0 where a ray is stopped wholly or not at all. Leave it out. Predict: what would the
# Gaussians prefer, if any background may stand behind them?

# %% alt="The robot with and without the term for opacity, on white and on black"
fog = dream(prior, caption, DreamConfig(steps=STEPS, weight_opaque=0.0), generator=gen(), progress=False).gaussians
rows, veil = {}, {}
for name, scene in (("solid", made.gaussians), ("without the term", fog)):
    alpha = rasterize(scene, around(8).to(DEVICE)).alpha
    veil[name] = ((alpha > 0.1) & (alpha < 0.9)).float().mean().item()
    white, black = (look(scene, around(8), (c,) * 3)[:2] for c in (1.0, 0.0))
    rows[name] = torch.cat([white, black, white - black])  # the difference is 1 - alpha, what shines through
print("half-transparent pixels:", ", ".join(f"{name} {share:.0%}" for name, share in veil.items()))
viz.compare(rows, ["on white\n0°", "\n45°", "on black\n0°", "\n45°", "difference\n0°", "\n45°"], cell=1.1)

# %% [markdown]
# **What to notice.** The last two columns are white where only background is seen, black where the object stops each ray, and
# grey where it is a veil. Without the term there is more grey, and the share of half-transparent pixels is half as large again,
# in spite of the random backgrounds. The term has a price: arms, and the pale band where eyes should be, are there without it and
# gone with it. A mesh needs a surface, so the course pays.
#
# ## 5 · An object that is alike on all sides
#
# "A brown robot" does not say from where. A prior that is asked for the caption alone finds any side plausible from any side, and
# an object that is alike all around suits every camera. DreamFusion's cure is to say the view: the caption is joined by a view
# word, and between two words the text features are mixed. You write the mixture:


# %%
# NBVAL_CHECK_OUTPUT
def my_view_shares(azimuth, elevation, width=30.0):
    """Degrees -> shares of front, side, back and overhead view, linear in bands of `width` around 45, 135 and 60."""
    turn = abs((azimuth + 180) % 360 - 180)  # 0 front ... 180 back
    side, back, above = (min(1.0, max(0.0, (angle - border) / width + 0.5))
                         for angle, border in ((turn, 45), (turn, 135), (elevation, 60)))
    return [(1 - above) * (1 - side), (1 - above) * (side - back), (1 - above) * back, above]


directions = [(a, e) for a in range(-400, 400, 7) for e in (-10, 30, 55, 70)]
cmp("view shares", [my_view_shares(*d) for d in directions], [view_shares(*d) for d in directions])
for azimuth in (0, 45, 315, 180):
    shares = zip(my_view_shares(azimuth, 15), VIEW_WORDS, strict=True)
    print(f"azimuth {azimuth:>3}:", ", ".join(f"{share:.1f} {word}" for share, word in shares if share))

# %% [markdown]
# With our small prior the word alone is too quiet: it changes few pixels. So the library makes it louder than the rest of the
# prompt, by the difference to the same caption with the *other* view words, $a$ = `view_guidance` (one more call, $o$, at the
# mean of their text features):
#
# $$\hat\varepsilon = u + \gamma\,(c - u) + a\,(c - o),\qquad \gamma = \texttt{guidance\_scale}$$
#
# Provoke the failure first: the same robot, the same seed, no view words. Predict how the eight sides differ.

# %% alt="The robot without view words, with them, and a true toy, from eight sides"
# NBVAL_CHECK_OUTPUT
unsaid = dream(prior, caption, DreamConfig(steps=STEPS, view_prompts=False), generator=gen(), progress=False).gaussians
ring = around(24)
turned = {"no view words": look(unsaid, ring), "view words": look(made.gaussians, ring),
          "a true toy": true_toy(caption, np.random.default_rng(SEED), ring)}
seen = {name: fronts(scorer, x.to(DEVICE), caption) for name, x in turned.items()}
for name, x in seen.items():
    print(f"{name:<14} front differs from back: {x['contrast'] > 0.1}")
viz.compare({f"{name}\ncontrast {seen[name]['contrast']:.2f}": x[::3] for name, x in turned.items()}, SIDES, cell=1.0)

# %% [markdown]
# **What to notice.** Contrast says how much more the front looks like a front, to the judge, than the back does.
# Without view words an egg on dark feet stands there, alike from all sides. DreamFusion's users met objects with a face on each
# side; our prior's mean toy has none, since a face is small. The reason is the same, and so is the cure: said views give a pale
# front and a red back, most of a true toy's contrast. Eyes and arms they do not give.
#
# ## 6 · Asking without noise
#
# Each SDS step draws fresh noise, so its target trembles: a new guess of the picture at every step, and their mean is soft.
# **Interval score matching** (ISM, LucidDreamer) draws none. It *inverts* the render by DDIM, without caption, up to a step $s$
# (no guidance scale here), goes one step further to $t = s + $ `interval`, and compares what the network says with the caption
# at $t$ to what it said without at $s$:
#
# $$g = w(t)\,\bigl[\hat\varepsilon(x_t, t, \text{caption}) - \hat\varepsilon(x_s, s, \varnothing)\bigr],\qquad
# w(t) = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}\ \text{ (weight "x0")}$$


# %%
# NBVAL_CHECK_OUTPUT
def my_ism_gradient(ask, plain, x, t, interval, abar, inversion_steps):
    """ask, plain: (x_t, t) -> eps_hat with caption and without; x (B, ...) -> g (B, ...)."""
    s = t - interval
    stops = torch.linspace(0, s, inversion_steps + 1).round().long().unique().tolist() + [t]  # 0 ... s, t
    level = torch.ones(())
    with torch.no_grad():
        for now, stop in zip(stops[:-1], stops[1:], strict=True):
            eps_hat = plain(x, torch.tensor(now))
            clean = x if level == 1 else convert(eps_hat, x, level, "eps", "x0")
            x, level = ddim_step(x, clean, eps_hat, level, abar[stop]), abar[stop]
        return ((1 - abar[t]) / abar[t]).sqrt() * (ask(x, torch.tensor(t)) - eps_hat)  # eps_hat: the last one, at s


z = torch.randn(4, *prior.latent_shape, generator=gen()).to(DEVICE)
ask, plain = guided(prior.predict_eps, told, empty, 7.5), lambda x, t: prior.predict_eps(x, t, empty)
levels = prior.alphas_cumprod.to(DEVICE)
mine, theirs = (f(ask, plain, z, 400, 60, levels, 3) for f in (my_ism_gradient, ism_gradient))
cmp("ISM gradient", mine, theirs, tol=1e-4)

# %% alt="Four toys painted by score distillation and by interval score matching"
# NBVAL_CHECK_OUTPUT
def ism_with(scale, interval=60):
    ask = guided(prior.predict_eps, told, empty, scale)
    return lambda z, t, g: ism_gradient(ask, plain, z, max(t, interval), interval, levels, 2, "sigma2")


painted = {"SDS, guidance 10": paint(sds_with(10)), "ISM, guidance 3": paint(ism_with(3))}
marks = {}
for name, x in painted.items():
    fits = np.mean([caption_score(scorer, x[i:i + 1].to(DEVICE), shelf[i]) for i in range(4)])
    marks[name] = 1000 * sharpness(x).mean().item(), fits
print("ISM is sharper:", marks["ISM, guidance 3"][0] > 1.5 * marks["SDS, guidance 10"][0])
print("and fits the caption nearly as well:", marks["ISM, guidance 3"][1] > marks["SDS, guidance 10"][1] - 0.04)
viz.compare({f"{name}\nsharpness {a:.0f}\ncosine {b:.2f}": painted[name] for name, (a, b) in marks.items()}, short, cell=1.25)

# %% [markdown]
# **What to notice.** Sharpness is a thousand times the variance of the Laplacian of the grey picture (each pixel's difference
# to the mean of its four neighbours, times 4): fine detail counts, and so does noise. The cosine is the judge's, between picture
# and caption. ISM's pictures are more than twice as sharp at nearly
# the same cosine: firmer outlines and more contrast where SDS has a haze. Each has a guidance that suits it: SDS needs 10, ISM
# fits the caption as well at 1.5 as at 7.5 (`gsgen bench sds`). Both took 80 steps at rate 0.02, but ISM five calls of the U-Net
# for each step instead of two, and backgrounds got stains and colour. (Both weight by $1-\bar\alpha_t$ here: "x0" burns at high
# $t$.)
#
# Play: prompt, guidance, annealing, view words. "Make" takes about ten seconds for 60 steps. The strip is its static twin: the
# same prompt with $t$ falling, with $t$ random, and at guidance 100.

# %% alt="A mug after 60 steps, front and back: with t falling, with t random, and at guidance 100"
text = widgets.Text("a red mug with white dots", description="prompt", layout={"width": "32rem"})
scale = widgets.FloatSlider(10.0, min=0, max=100, description="guidance")
falls = widgets.Checkbox(True, description="t falls")
words = widgets.Checkbox(True, description="view words")
button = widgets.Button(description="Make")
screen = widgets.Output()


def make(prompt, **options):
    """Front and back of an object after 60 steps, (2, H, W, 3)."""
    config = DreamConfig(steps=60, densify="none", **options)
    return look(dream(prior, prompt, config, generator=gen(), progress=False).gaussians)[[0, 4]]


def press(_):
    pictures = make(text.value, guidance_scale=scale.value, annealed=falls.value, view_prompts=words.value)
    with screen:
        screen.clear_output(wait=True)
        display(viz.image_grid(pictures, columns=2, labels=["front", "back"], alt=text.value))


button.on_click(press)
twin = torch.cat([make(text.value), make(text.value, annealed=False), make(text.value, guidance_scale=100.0)])
labels = [f"{side}\n{name}" for name in ("t falls", "t random", "guidance 100") for side in ("front", "back")]
display(viz.image_grid(twin, columns=6, labels=labels))
display(widgets.VBox([text, scale, falls, words, button, screen]))

# %% [markdown]
# **What to notice.** Sixty steps are a sketch: colours, and a rough outline without a handle. So early, random $t$ does little
# harm; at guidance 100 the mug is broader and pinker. `gsgen sample dreamgaussian --prompt "..."` takes 400 steps, and makes a
# mesh of them.
#
# ## Exercises
#
# The checks of 1, 2 and 4 draw new random inputs and compare with an independent computation. The solutions are in
# `notebooks/solutions`.
#
# ### Exercise 1 · Score distillation from memory (20 minutes)
#
# Without scrolling up: write the loss of SDS with $w = 1$, for a batch of renders whose steps `t` differ. Its gradient with
# respect to `x` must be $(\hat\varepsilon - \varepsilon) / B$, and no gradient may reach what is inside `predict`. Evidence:
# "passed".


# %% exercise="1"
# NBVAL_CHECK_OUTPUT
def distillation(predict, x, t, eps, abar):
    """predict(x_t, t) -> (B, D); x, eps (B, D); t (B,) steps; abar (T,) -> scalar."""
    ### BEGIN SOLUTION
    a = abar[t][:, None]
    with torch.no_grad():
        g = predict(a.sqrt() * x + (1 - a).sqrt() * eps, t) - eps
    return 0.5 * (x - (x - g).detach()).square().sum() / len(x)
    ### END SOLUTION


check(nb03.exercise_1, distillation)

# %% [markdown]
# ### Exercise 2 · The last step of ISM (20 minutes)
#
# `x_s` (B, D) is a render that has been inverted to step `s`, at level `abar[s]`. Go one DDIM step to level `abar[t]` with what
# `plain` says, and return $w\,[\,$`ask`$\,(x_t, t) - $`plain`$\,(x_s, s)]$ with $w = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$.
# Evidence: "passed".


# %% exercise="2"
def interval_gradient(ask, plain, x_s, s, t, abar):
    """ask, plain: (x, step) -> (B, D); s, t: steps, s < t; abar (T,) -> (B, D)."""
    ### BEGIN SOLUTION
    eps_s = plain(x_s, s)
    x0 = (x_s - (1 - abar[s]).sqrt() * eps_s) / abar[s].sqrt()
    x_t = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * eps_s
    return ((1 - abar[t]) / abar[t]).sqrt() * (ask(x_t, t) - eps_s)
    ### END SOLUTION


check(nb03.exercise_2, interval_gradient)

# %% [markdown]
# ### Exercise 3 · Predict, then run (10 minutes)
#
# 300 points stand exactly *at* the right cluster's centre, $(1, 0)$, and follow SDS (weight `"x0"`) with random $t$ from 500 to
# 980 only. After 400 steps, their mean lies (a) at the cluster, since they were at a mode, (b) near the origin, (c) far
# outside, beyond 2. Set `prediction`. Then change two things in a copy of `distil`, the start and the times,
# `random_time(300, g, 500, 980)`, and run it. Evidence: the mean.

# %% exercise="3"
### BEGIN SOLUTION
prediction = "b"
abar = alphas_cumprod_of(linear_betas(1000)).double()
two = GaussianMixture(torch.tensor([[-1.0, 0], [1, 0]]).double(), torch.full((2,), 0.2).double(), torch.ones(2).double())
exact, g, points = two.denoiser(abar), gen(), two.means[1].repeat(300, 1)
for _ in range(400):
    noise = torch.randn(points.shape, generator=g, dtype=torch.float64)
    points = points - 0.2 * sds_gradient(exact, points, random_time(300, g, 500, 980), noise, abar, "x0")
print(f"their mean: x = {points[:, 0].mean().item():.1f}, y = {points[:, 1].mean().item():.1f}")
### STUB
# prediction = None  # "a", "b" or "c"
### END SOLUTION
check(nb03.exercise_3, prediction)

# %% [markdown] solution=true
# Near the origin, so (b). At these levels the two clusters have melted into one hill whose top is in the middle: the mode of
# the *noised* density is not a mode of the data. Only small $t$ knows that there are two.

# %% [markdown]
# ### Exercise 4 · Debug (20 minutes)
#
# Somebody's robot has no back, although the view is said, and seen from 315 to 360 degrees its front looks like a side. Cameras
# are drawn from 0 to 360 degrees. `said_shares` says one of three words, with hard borders at 45 and 135 degrees. Remove the
# line with `raise` and the `#` in front of the two lines below it; then mend those. Evidence: "passed".


# %% exercise="4"
def said_shares(azimuth):
    """Degrees, any -> shares of front, side and back view: one of them 1, the others 0."""
    ### BEGIN SOLUTION
    turn = abs((azimuth + 180) % 360 - 180)
    return [float(turn <= 45), float(45 < turn <= 135), float(turn > 135)]
    ### STUB
    # raise NotImplementedError("exercise 4: remove this line and the # in front of the next two, and mend them")
    # # turn = abs(azimuth)
    # # return [float(turn <= 45), float(turn > 45), float(turn > 135 and turn <= 45)]
    ### END SOLUTION


check(nb03.exercise_4, said_shares)

# %% [markdown]
# ### Exercise 5 · Open: what moves an object from mode to mode? (45 minutes)
#
# Distillation gives the typical object. Make the robot with three seeds, `dream(prior, caption, DreamConfig(steps=STEPS),
# generator=gen(seed))`, then with $t$ annealed only down to 300, `DreamConfig(steps=STEPS, low=300)`, and with
# `guidance_scale=3.0`. Measure how much the three objects of one setting differ (mean absolute difference of
# `look(...)`, over the three pairs of seeds), and what it costs, `caption_score(scorer, look(...).to(DEVICE), caption)`.
# Evidence: a table of both, and one sentence: what buys variety, and at what cost? On two cores each of the nine
# objects takes some 15 seconds.
#
# ## Summary
#
# | claim | where you saw it |
# |---|---|
# | the SDS gradient needs no Jacobian of the network, and is not that of the squared error | section 1, by autograd |
# | distillation seeks modes, sampling covers them | section 2, widths of clusters |
# | falling noise finds modes, random noise stays between them | section 2 |
# | large guidance leaves the data; colours saturate | section 3, points and pictures |
# | densification can follow the distillation gradient | section 4; `gsgen bench sds` compares it with chance |
# | without view words an object is alike from all sides | section 5, with a true toy beside it |
# | interval score matching is sharper | section 6 |
#
# ## References
#
# - Poole, Jain, Barron, Mildenhall: DreamFusion, 2022: eq. 3, view words in section 3.2.
# - Tang et al.: DreamGaussian, 2023: section 3.1, annealing and densification.
# - Liang et al.: LucidDreamer, 2023: interval score matching, eq. 16 and 17.
# - Armandpour et al.: Perp-Neg, 2023: other views as negative prompts. Shi et al.: MVDream, 2023: four views at once.
#
# ## Time and memory

# %%
print(time_and_memory(STARTED))
