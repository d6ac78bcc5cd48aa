# %% [markdown]
# # 10 · As many Gaussians as you like
#
# CPU about 60 s · GPU not needed, used where there is one · full training two hours on one core, checkpoint shipped
#
# <!-- colab-badge -->
#
# 75 minutes to read, two hours for the exercises. Prerequisites: notebooks 01, 06 and 09. You need no reinforcement learning: the one
# trick of it that is used here is built in section 1, on a line.
#
# So far something fixed where Gaussians go: pixels, voxels, latents of views. A white wall got as many as a bicycle's spokes. DeG
# turns it round: from a code of the object comes a *density*, and Gaussians are samples of it. Draw 256 or 8,192, from one code. And
# the density learns from pictures where one more Gaussian is worth most.

# %% [markdown]
# ## You will be able to
#
# - **differentiate** an average over samples, though sampling has no derivative (section 1);
# - **walk** down an octree whose nodes share out a whole number of points (section 2, exercise 1);
# - **compute** what one Gaussian is worth, and **prune** with it (section 3, exercises 2 and 4);
# - **watch** a density move, and **measure** whether it pays (section 4);
# - **decode** one code at any budget (section 5, exercises 3 and 5).
#
# ## Set-up
#
# After the imports come the knobs. The first cell goes all the way once: a real object that training never saw, one code, four
# budgets. Predict: how many Gaussians does it take until you can tell what it is?

# %% tags=["setup"]
# (the set-up cell is inserted here)

# %% tags=["shared"]
import copy
import time
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display

from gsgen_lib import viz
from gsgen_lib.checks import check, cmp, nb10
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.multiview import load_views
from gsgen_lib.doctor import time_and_memory
from gsgen_lib.metrics import psnr
from gsgen_lib.nn.octree import WAYS, allocate, log_q, masses
from gsgen_lib.nn.point_sets import farthest_points
from gsgen_lib.point_features import point_features
from gsgen_lib.raster import rasterize
from gsgen_lib.raster.contribution import contributions, most_worth
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians
from gsgen_lib.systems.contribution_gradient import How, appearance_loss, tamed
from gsgen_lib.systems.octree_density import load_octree_density

STARTED = time.perf_counter()
FAST = True
SEED = 0
LINE_STEPS = 300
OBJECT_STEPS = 60 if FAST else 400  # of section 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WHITE = (1.0, 1.0, 1.0)
OUT = Path("outputs")  # where this notebook writes


def gen(seed=SEED):
    return torch.Generator().manual_seed(seed)


# %% tags=["main"] alt="One code of a real object, decoded as 128, 512, 2,048 and 8,192 Gaussians, from two sides"
model = load_octree_density(device=DEVICE)
K = model.config.gaussians
real = load_views("test", progress=False)
NAME = "bicycle" if any("bicycle" in name for name in real.ids) else real.ids[0]
OBJECT = next(i for i, name in enumerate(real.ids) if NAME in name)


def views_of(i):
    """Pictures (1, V, S, S, 4) and cameras of batch (1,), all of one object."""
    one = real[i]
    return one.images.float().to(DEVICE) / 255, one.cameras.to(DEVICE)


def code_of(i, tokens=None):
    """The mean of the code of object i, from its surface points and the eight views around it."""
    rgba, cameras = views_of(i)
    with torch.no_grad():
        return model.encode(real.points[[i]].to(DEVICE), (rgba[:, :8], cameras[:8]), tokens)[0]


def look(scene, i, sides=(0, 2)):
    """Renders (V, S, S, 3) on white of one scene, from sides of object i."""
    _, cameras = views_of(i)
    at = Cameras(cameras.viewmats[0], cameras.Ks[0], 64, 64)[list(sides)]
    return rasterize(scene, at, WHITE).rgb.clamp(0, 1).detach().cpu()


z = code_of(OBJECT)
print("code:", tuple(z.shape[1:]), "=", z[0].numel(), "numbers")
budgets = (128, 512, 2048, 8192)
with torch.no_grad():
    scenes = [model.decode(z, budget, gen())[0] for budget in budgets]
true = on_background(views_of(OBJECT)[0][0, [0, 2]].cpu(), torch.ones(3))
both = torch.stack([look(scene, OBJECT) for scene in scenes] + [true])
viz.compare({"front": both[:, 0], "right": both[:, 1]}, [f"{b:,}" for b in budgets] + ["true"], cell=1.5)

# %% [markdown]
# **What to notice.** 128 Gaussians are a chair with legs of fog; with 512 the legs stand; between 2,048 and 8,192 hardly anything
# happens. The pale weave of the back and the seat comes at no budget: what 2,048 numbers of a code do not hold, no number of
# Gaussians brings back.
#
# ## 1 · The derivative of a draw
#
# Forget 3D. A picture is a line of 256 pixels: calm on the left, busy on the right. You may place $P$ = 24 samples; every pixel shows
# what the sample next to it saw. Where samples go is drawn from a density $q$ over 32 cells, the softmax of 32 numbers θ = `logits`.
# You want the mean error as small as can be:
#
# $$J(\theta) = \mathbb{E}_{x_1 \ldots x_P \sim q_\theta}\; L(x_1, \ldots, x_P)$$
#
# So follow its derivative. Try what always worked: draw, compute $L$, call `backward`.

# %%
# NBVAL_CHECK_OUTPUT
pixels = (torch.arange(256) + 0.5) / 256
busy = pixels >= 0.5
line = 0.5 + torch.where(busy, 0.4 * torch.sin(18 * torch.pi * pixels), 0.3 * torch.sin(2 * torch.pi * pixels))


def shown(places):
    """What 256 pixels show of samples at places (P,) in [0, 1]."""
    nearest = (pixels[:, None] - places).abs().argmin(1)
    return line[(places * 256).long().clamp(0, 255)][nearest]


def error(places):
    """Mean absolute error of the line."""
    return (shown(places) - line).abs().mean()


def draw_cells(q, count, generator):
    """Cells (P,) drawn from q (32,), and a place anywhere in each."""
    cells = torch.multinomial(q, count, replacement=True, generator=generator)
    return cells, (cells + torch.rand(count, generator=generator)) / len(q)


logits = torch.zeros(32, requires_grad=True)
cells, places = draw_cells(logits.softmax(0), 24, gen())
print(f"error of these 24: {error(places):.3f}")
try:
    error(places).backward()
except RuntimeError as problem:
    print("RuntimeError:", str(problem).split("\n")[0])

# %% [markdown]
# A cell is a whole number: move θ a little and the same cells are drawn, or suddenly others. No derivative passes. But $J$ is a
# *sum* over all possible draws, each with its probability, and probabilities do have derivatives. Since $\nabla q = q\, \nabla \log q$,
#
# $$\nabla \sum_x q(x)\, L(x) = \sum_x q(x)\, L(x)\, \nabla \log q(x) = \mathbb{E}\,[\,L(x)\, \nabla \log q(x)\,]$$
#
# and that is an average over draws again. This is the **log-derivative trick**. Read it aloud: raise the probability of what came
# out, by as much as it cost, downhill. And any number that does not depend on $x$ may be taken off $L$, since
# $\mathbb{E}\,[\nabla \log q] = 0$. For sample $j$ of many take off what the loss would be *without* it:
#
# $$\nabla J = \mathbb{E}\,\Big[\sum_j d_j\, \nabla \log q(x_j)\Big], \qquad d_j = L(\{x\}) - L(\{x\} \setminus x_j)$$
#
# with $d_j$ = `worth`, negative where the sample helps. (It holds for samples that are drawn one by one.) Check it where all draws can
# be counted: two samples, eight cells, 64 draws.


# %% alt="Spread of two estimates of the same derivative over 400 draws: the plain one, and the one by worth"
# NBVAL_CHECK_OUTPUT
def worth(places):
    """d (P,): the error with all, less that without each."""
    rest = [torch.cat([places[:j], places[j + 1:]]) for j in range(len(places))]
    return error(places) - torch.stack([error(some) for some in rest])


theta = torch.randn(8, generator=gen(1)).double().requires_grad_()
q = theta.softmax(0)
middle = (torch.arange(8) + 0.5) / 8
draws = [(a, b) for a in range(8) for b in range(8)]
exact, = torch.autograd.grad(sum(q[a] * q[b] * error(middle[[a, b]]) for a, b in draws), theta, retain_graph=True)
grads = {"plain": [], "worth": []}
for pair in draws:
    d = worth(middle[list(pair)])
    for name, factor in (("plain", error(middle[list(pair)]) * torch.ones(2)), ("worth", d)):
        grads[name].append(torch.autograd.grad((factor * q.log()[list(pair)]).sum(), theta, retain_graph=True)[0])
chance = torch.stack([(q[a] * q[b]).detach() for a, b in draws])
for name, found in grads.items():
    cmp(name, (chance[:, None] * torch.stack(found)).sum(0), exact)
picked = torch.multinomial(chance.float(), 400, replacement=True, generator=gen())
with viz.style():
    figure, panel = plt.subplots(figsize=(5.5, 2.2), layout="constrained")
    for k, (name, color) in enumerate((("plain", "#999999"), ("worth", "#0072B2"))):
        one = torch.stack(grads[name])[picked]
        panel.bar(np.arange(8) + 0.4 * k - 0.2, one.std(0), width=0.4, color=color, label=name)
    panel.plot(range(8), exact.abs(), "k_", ms=14, label="size of the exact derivative")
    panel.set(xlabel="cell", ylabel="spread of one estimate")
    panel.legend(fontsize=7)
    plt.show()

# %% [markdown]
# **What to notice.** Both estimates are right on average, and one of them is useless: a single plain estimate is off by ten times the
# size of what it estimates, for it blames each sample for the whole error. By its worth each sample is judged for its own share.
#
# Now let it run: 24 samples on the line, 300 steps. One nicety: worths of one draw are compared with each other, by taking off their
# mean. Predict: where will the samples go, and will the learned density also be better for 6 samples, or 96?

# %% alt="The line, the learned density over it, and the error against the number of samples for an even and the learned density"
# NBVAL_CHECK_OUTPUT
def learn(count, steps=LINE_STEPS):
    """The density (32,) that `count` samples want."""
    logits = torch.zeros(32, requires_grad=True)
    adam = torch.optim.Adam([logits], 0.05)
    for step in range(steps):
        cells, places = draw_cells(logits.softmax(0).detach(), count, gen(step))
        d = worth(places)
        ((d - d.mean()) * logits.log_softmax(0)[cells]).sum().backward()
        adam.step()
        adam.zero_grad()
    return logits.softmax(0).detach()


def mean_error(q, count):
    """Over 200 fresh draws."""
    return torch.stack([error(draw_cells(q, count, gen(10_000 + k))[1]) for k in range(200)]).mean().item()


even, learned, counts = torch.full((32,), 1 / 32), learn(24), (6, 12, 24, 48, 96)
curves = {name: [mean_error(q, n) for n in counts] for name, q in (("even", even), ("learned for 24", learned))}
print("share of the density in the busy half:", "more than .6" if learned[16:].sum() > 0.6 else "less than .6")
print("24 samples, error at least 5 % smaller:", curves["learned for 24"][2] < 0.95 * curves["even"][2])
print("6 samples, better than even:", curves["learned for 24"][0] < curves["even"][0])
with viz.style():
    figure, panels = plt.subplots(1, 2, figsize=(7, 2.2), layout="constrained")
    panels[0].plot(pixels, line, color="#999999")
    panels[0].stairs(5 * learned, np.linspace(0, 1, 33), fill=True, alpha=0.5, color="#0072B2")
    panels[0].set(xlabel="place", title="line (grey), density (blue, 5 q)")
    for (name, found), color in zip(curves.items(), ("#999999", "#0072B2"), strict=True):
        panels[1].loglog(counts, found, "o-", color=color, label=name)
    panels[1].set(xlabel="samples", ylabel="mean error", xticks=counts, xticklabels=counts)
    panels[1].minorticks_off()
    panels[1].legend(fontsize=7)
    plt.show()

# %% [markdown]
# **What to notice.** Samples go where the line is busy, though nobody told them. With 24 samples, and with 48 or 96, that is better than an
# even spread. With 6 it is not: this few cannot follow the waves anyway, and they are missed on the left. A density is good *for a
# budget*; that is why training in section 4 draws the budget anew in every step.
#
# ## 2 · A density on an octree
#
# In 3D, 32 cells become $64^3$ = 262,144 leaves. A softmax over all of them would be the dense grid again. So choose in steps: which
# eighth of the cube, which eighth of that, six times. With `log_p` the log-softmax at a node, and child $c = d_x + 2 d_y + 4 d_z$:
#
# $$\log q(x) = \sum_{l=1}^{6} \log p_l\big[c_l(x)\big]$$
#
# The network that gives `log_p` sees the node's place and level, and asks the tokens of the code by attention. It is asked only at
# nodes that matter. Walk down for one point, and compare with the library:


# %%
# NBVAL_CHECK_OUTPUT
def ask(nodes):
    """Log-probabilities (T, 8) of the children of nodes, from the code of our object."""
    with torch.no_grad():
        return model.density(context.tokens, nodes, context.places).cpu()


def my_log_q(point):
    """log q of the leaf that holds one point (3,)."""
    nodes, mass = masses(point[None, None], model.config.depth)  # one node for each level; its child that holds the point has 1
    return (mass * ask(nodes)).sum()


with torch.no_grad():
    context = model.context(z)
some = real.points[OBJECT, :3, :3]
cmp("log q", torch.stack([my_log_q(p) for p in some]).mean(), log_q(ask, some[None], model.config.depth)[0], tol=1e-4)
air = torch.tensor([0.45, -0.45, 0.45])
print("a surface point is likelier than one in an empty corner:", bool(my_log_q(some[0]) > my_log_q(air) + 2))

# %% [markdown]
# Now sampling. Going down node by node for each of 2,048 points would be slow, and clumsy: chance would put three points here and none
# there. Instead the root gets the *number* 512 and shares it out: a node with $n$ points draws one $u$ in $[0, 1/n)$ and sets a comb
# of teeth at $u, u + 1/n, u + 2/n \ldots$ on the line of the cumulated probabilities. Teeth are counted, child by child: **systematic
# sampling**. Each child gets $n p$ on average, and never more than one away from it. Predict: which of the three ways below
# spreads least?

# %% alt="Three combs on the same line of eight children, and the spread of their counts for three ways of sampling"
# NBVAL_CHECK_OUTPUT
p = torch.tensor([0.31, 0.17, 0.13, 0.11, 0.1, 0.09, 0.06, 0.03])
counts = {how: allocate(torch.full((4000,), 13), p.expand(4000, 8), how, gen()).float() for how in WAYS}
for how, found in counts.items():
    print(f"{how}: mean counts within 0.1 of n p: {bool((found.mean(0) - 13 * p).abs().max() < 0.1)}, "
          f"farthest from n p: {'less than 1' if (found - 13 * p).abs().max() < 1 else 'more than 1'}")
with viz.style():
    figure, panels = plt.subplots(1, 2, figsize=(7, 2), width_ratios=(2, 1), layout="constrained")
    edges = torch.cat([torch.zeros(1), p.cumsum(0)])
    for k, u in enumerate((0.1, 0.4, 0.9)):
        panels[0].vlines((torch.arange(13) + u) / 13, k - 0.3, k + 0.3, color="#D55E00")
    for i in range(8):
        panels[0].axvspan(edges[i], edges[i + 1], color="#0072B2", alpha=0.05 + 0.12 * (i % 2))
    panels[0].set(yticks=range(3), yticklabels=["u = .1/n", "u = .4/n", "u = .9/n"], xlabel="cumulated probability of the 8 children")
    panels[1].bar(WAYS, [found.var(0).sum() for found in counts.values()], color=("#0072B2", "#009E73", "#999999"))
    panels[1].set(ylabel="variance of the counts")
    plt.show()

# %% [markdown]
# **What to notice.** All three are right on average. One by one, a child may get far too many; residual sampling is sure of the whole part
# and leaves only the rest to chance; the comb never misses by one. Less chance in where anchors lie is less noise in the picture.
#
# The same as a film: `u` moves, the comb slides, and a child's count changes by one when a tooth crosses its border. Below it the
# octree itself, level by level: nodes that hold some of 512 anchors.

# %% alt="The comb of systematic sampling sliding over eight children, with their counts"
frames = []
with viz.style():
    for u in np.linspace(0, 0.96, 25):
        figure, panel = plt.subplots(figsize=(2.4, 1.3), layout="constrained")
        teeth = (torch.arange(13) + u) / 13
        for i in range(8):
            panel.axvspan(edges[i], edges[i + 1], color="#0072B2", alpha=0.05 + 0.12 * (i % 2))
            inside = int(((teeth >= edges[i]) & (teeth < edges[i + 1] + 1e-9)).sum())
            panel.text((edges[i] + edges[i + 1]) / 2, 1.1, inside, ha="center", fontsize=8)
        panel.vlines(teeth, 0, 1, color="#D55E00", lw=2.5)
        panel.set(ylim=(0, 1.5), xlim=(0, 1), yticks=[], xticks=[])
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255)
        plt.close(figure)
viz.save_animation(np.stack(frames), OUT / "comb.webp", seconds=4, alt="a comb sliding over eight children, with their counts",
                   labels=[f"u = {u:.2f}/n" for u in np.linspace(0, 0.96, 25)])

# %% alt="Nodes of the octree that hold some of 512 anchors, at six levels, seen from the front"
with torch.no_grad():
    anchors = model.anchors(context, 512, generator=gen())
nodes, mass = masses(anchors.points.cpu(), model.config.depth)
with viz.style():
    figure, panels = plt.subplots(1, model.config.depth, figsize=(8.4, 1.7), sharey=True, layout="constrained")
    for level, panel in enumerate(panels):
        here = nodes.level == level
        held = 512 * mass[here].sum(1)
        x, y, _ = nodes.centres()[here].T
        panel.scatter(x, y, s=2 + 3 * held / held.mean(), c="#0072B2", alpha=0.5, lw=0)
        panel.set(xlim=(-0.5, 0.5), ylim=(-0.5, 0.5), xticks=[], yticks=[], aspect="equal", xlabel=f"{int(here.sum())} nodes")
        panel.set_title(f"level {level}", fontsize=8)
    plt.show()

# %% [markdown]
# **What to notice.** Of 8 nodes at level 1 none is empty, of 32,768 at level 5 some five hundred hold all anchors. Six calls of the
# network, each for the nodes that matter, and an object stands there in points.
#
# ## 3 · What one Gaussian is worth
#
# In section 1 the worth of a sample was found by leaving it out and computing the loss again, once for each. For 4,096 Gaussians that
# would be 4,096 renders a step. But a pixel is *affine* in every opacity: with $S_j$ the colour that all behind Gaussian $j$ add, the
# background included,
#
# $$C - C_{\text{without } j} = T_j \alpha_j c_j - S_j \frac{\alpha_j}{1 - \alpha_j}$$
#
# What lay behind $j$ shines through more, by $1 / (1 - \alpha_j)$. The rasterizer's backward pass has all these numbers in its hands
# anyway; with `target=` it adds up for each Gaussian $|C - C^*| - |C_{\text{without } j} - C^*|$ over the pixels. Take a decoded scene
# and verify it as you would trust it: by brute force. (They may differ in a thousandth here: a pixel that is full to 99.99 % is
# finished early, and without one Gaussian it would look a little farther. Where that does not happen they agree in ten digits.)


# %% alt="A picture with all Gaussians, without the most valuable one, and the difference; then a scene coloured by worth"
# NBVAL_CHECK_OUTPUT
rgba, cameras = views_of(OBJECT)
AT = Cameras(cameras.viewmats[0], cameras.Ks[0], 64, 64)
target = on_background(rgba[0].cpu(), torch.ones(3)).to(DEVICE)  # (V, S, S, 3)
small = model.decode(z, 256, gen())[0].detach()


def off(scene):
    """Sum over four views, pixels and channels of the absolute error, by the textbook rasterizer in double precision."""
    return (rasterize(scene, AT[:4].to(torch.float64), WHITE, "reference").rgb - target[:4]).abs().sum()


found = contributions(small, AT, target, WHITE)[..., 0].sum(0)  # (N,): L1, all views
everyone, exact = torch.arange(small.num, device=DEVICE), small.to(torch.float64)
mine = torch.stack([off(exact) - off(exact.select(everyone != j)) for j in range(20)])
told = contributions(exact, AT[:4].to(torch.float64), target[:4], WHITE, "reference")[:, :20, 0].sum(0)
cmp("worth of 20", mine / told.abs().max(), told / told.abs().max(), tol=2e-3)
best = int(found.argmin())
pair = small, small.select(everyone != best)
SIDE = int((look(pair[0], OBJECT, range(8)) - look(pair[1], OBJECT, range(8))).abs().sum((1, 2, 3)).argmax())  # shows it most
with_all, without = (look(s, OBJECT, (SIDE,)) for s in pair)
heat = ((-found / found.abs().quantile(0.98)).clamp(0, 1))[:, None]
tinted = replace(small, colors=heat * torch.tensor([0.85, 0.1, 0.0], device=DEVICE) + (1 - heat) * 0.8)
viz.compare({"": torch.cat([with_all, without, 1 - (with_all - without).abs(), look(tinted, OBJECT, (SIDE,))])},
            ["all 256", "without one", "difference", "red: worth much"], cell=1.7)

# %% [markdown]
# **What to notice.** One Gaussian of 256 leaves a hole of a few pixels. Red are those that stand alone: thin parts and rims, where nothing
# else would fill the gap. In the middle of a broad face four neighbours cover for each, and each seems to be worth little.
#
# The failure on purpose. The authors' released renderer leaves the background out of $S$. On black nothing is missing. On white it
# forgets that behind a removed Gaussian white appears. Same scene, same picture; predict which Gaussians it gets most wrong.

# %% alt="Worth of Gaussians with the background left out against their true worth, on black and on white"
# NBVAL_CHECK_OUTPUT
panels_of = {}
for name, level in (("black", 0.0), ("white", 1.0)):
    behind = (level,) * 3
    aim = on_background(rgba[0].cpu(), torch.full((3,), level)).to(DEVICE)
    right = contributions(small, AT, aim, behind)[..., 0].sum(0)
    seen = (1 - rasterize(small, AT).alpha) * level  # the same error, on black: nothing lies behind
    wrong = contributions(small, AT, aim - seen, (0.0, 0.0, 0.0))[..., 0].sum(0)
    panels_of[name] = (right.cpu(), wrong.cpu())
    print(f"{name}: left out makes a difference of more than 10 % of the mean worth:",
          bool((right - wrong).abs().mean() > 0.1 * right.abs().mean()))
with viz.style():
    figure, panels = plt.subplots(1, 2, figsize=(5.5, 2.4), layout="constrained")
    for panel, (name, (right, wrong)) in zip(panels, panels_of.items(), strict=True):
        panel.plot(right, wrong, ".", ms=3, color="#0072B2")
        ends = [min(right.min(), wrong.min()), max(right.max(), wrong.max())]
        panel.plot(ends, ends, color="#999999", lw=0.8)
        panel.set(title=f"on {name}", xlabel="true worth", ylabel="background left out")
    plt.show()

# %% [markdown]
# **What to notice.** On black both agree. On white there is no line any more, not even a sign: what is most useful, because white would
# show without it, looks worthless. The picture was the same, the loss was the same; a density trained like this would go astray,
# and no curve of the training would tell you.
#
# Worth has a use of its own: throw away what is worth least. Two orders: by opacity, as 3DGS prunes, and by worth. But beware: of two
# Gaussians at the same place neither seems to be worth anything, since the other is there. So throw away few at a time, and ask again.

# %% alt="A scene of 4,096 Gaussians pruned to 512 by opacity, by worth in one go, and by worth in twenty rounds"
full = model.decode(z, 4096, gen())[0].detach()
pruned = {"all 4,096": full, "opacity": full.select(full.opacities.argsort(descending=True)[:512]),
          "worth, at once": most_worth(full, AT[:8], target[:8], 512, WHITE, rounds=1),
          "worth, 20 rounds": most_worth(full, AT[:8], target[:8], 512, WHITE),
          "drawn: 512": model.decode(z, 512, gen())[0].detach()}
for name, scene in pruned.items():
    print(f"{name}: {psnr(rasterize(scene, AT[8:], WHITE).rgb.clamp(0, 1), target[8:]).item():.1f} dB on views that were not asked")
viz.compare({"right": torch.cat([look(s, OBJECT, (2,)) for s in pruned.values()])}, list(pruned), cell=1.5)

# %% [markdown]
# **What to notice.** Opacity throws the legs away, since their Gaussians are faint, and loses six decibels; worth keeps frame and legs. At once
# it takes too many from the seat, where each seemed to be covered by others; in rounds it loses less than two. `gsgen bench density
# --part 1` does the same with fitted objects. And look at the last picture: where there is a code, drawing 512 in the first place
# is better than any pruning.
#
# ## 4 · The density learns from pictures
#
# Training has three stages. **Structure**: the density alone, cross-entropy to points of the surface, evenly by area. **Appearance**:
# anchors are drawn, a transformer makes $K$ = 4 Gaussians of each, pictures are compared. **Joint**: the worth of each anchor, the sum
# over its four Gaussians, becomes the derivative of its $\log q$. Before, it is tamed, for one odd anchor must not shout down all
# others: harm counts as 0; no worth is larger than that of nine in ten; the mean is taken off.

# %%
# NBVAL_CHECK_OUTPUT
d = torch.tensor([[-10.0, -2.0, -1.0, 5.0, -1.0]])
one = d.clamp(max=0)
two = one.clamp(min=-one.abs().quantile(0.9).item())
three = two - two.mean()
for name, value in (("worth", d), ("harm is 0", one), ("clipped", two), ("centred", three)):
    print(f"{name:10s}", [round(v, 2) for v in value[0].tolist()])
cmp("tamed", three, tamed(d, How()))

# %% [markdown]
# Watch it on one object. A copy of the network goes on training on this object alone, with 64 anchors: once told by pictures where
# anchors are worth most, once not. All else is the same, seeds included. Predict: where will the density rise, and by how much do
# pictures improve?


# %% alt="Anchors of one object before, and after training on it without and with contributions"
def trained_on(i, how, steps=OBJECT_STEPS, count=64):
    """A copy of the network after some steps on object i."""
    own = copy.deepcopy(model).requires_grad_(True)
    adam = torch.optim.Adam(own.parameters(), 1e-4)
    rgba, cameras = views_of(i)
    points = real.points[[i]].to(DEVICE)
    for step in range(steps):
        g = gen(step)
        judged = 8 + torch.randperm(rgba.shape[1] - 8, generator=g)[:6]
        loss = appearance_loss(own, own.config, points, rgba[:, :8], cameras[:8], 96, count, rgba[:, judged], cameras[judged], g, how)
        adam.zero_grad()
        loss["loss"].backward()
        adam.step()
    return own.requires_grad_(False)


def quality(network, count=64, draws=8):
    """Mean PSNR of the eight views around the object over some draws of anchors, and many anchors (n, 3)."""
    rgba, cameras = views_of(OBJECT)
    mu, _ = network.encode(real.points[[OBJECT]].to(DEVICE), (rgba[:, :8], cameras[:8]))
    found = [psnr(rasterize(network.decode(mu, count * K, gen(k))[0], AT[:8], WHITE).rgb.clamp(0, 1), target[:8]).item()
             for k in range(draws)]
    return np.mean(found), network.anchors(network.context(mu), 4096, generator=gen()).points[0].cpu()


start = time.perf_counter()
networks = {"before": model, "without": trained_on(OBJECT, None), "with": trained_on(OBJECT, How())}
print(f"two trainings of {OBJECT_STEPS} steps: {time.perf_counter() - start:.0f} s")
with torch.no_grad():
    after = {name: quality(network) for name, network in networks.items()}
print(", ".join(f"{name}: {value:.2f} dB" for name, (value, _) in after.items()))
with viz.style():
    figure, panels = plt.subplots(1, 3, figsize=(7, 2.5), sharey=True, layout="constrained")
    for panel, (name, (_, cloud)) in zip(panels, after.items(), strict=True):
        panel.hist2d(cloud[:, 0].numpy(), cloud[:, 1].numpy(), bins=48, range=[[-0.5, 0.5]] * 2, cmap="Blues", vmax=24)
        panel.set(title=name, xticks=[], yticks=[], aspect="equal")
    plt.show()

# %% [markdown]
# **What to notice.** Both trainings know this object better than before; that is no surprise. What differs is where anchors go: told by
# pictures they leave the middle of the back, where neighbours cover for each other, for the frame and the legs. Here that is worth
# a few tenths of a decibel. One object proves nothing: `gsgen bench density --part 3` asks over all test objects, with networks of
# its own, and there the difference at 64 anchors was .1 dB in the first seed, with an interval that includes 0. The paper's gain is
# not seen at our size. One reason: with so few anchors nearly all of an anchor's worth is that it covers something at all.
#
# ## 5 · One code, any budget
#
# The number of anchors was drawn anew for each step of training, from 64 to 512, and to 1,024 in stage 3: 256 to 4,096 Gaussians.
# Nothing stops you from asking for more or fewer. Predict: does the curve keep rising beyond what training saw?

# %% alt="PSNR of ten real objects against the number of Gaussians decoded from one code each"
ten, steps_of = list(range(0, len(real), max(1, len(real) // 10)))[:10], (128, 256, 512, 1024, 2048, 4096, 8192)
table = []
with torch.no_grad():
    for i in ten:
        pictures, around = views_of(i)
        at, code = Cameras(around.viewmats[0], around.Ks[0], 64, 64)[8:], code_of(i)
        truth = on_background(pictures[0, 8:].cpu(), torch.ones(3))
        table.append([psnr(rasterize(model.decode(code, n, gen())[0], at, WHITE).rgb.clamp(0, 1).cpu(), truth).item()
                      for n in steps_of])
table = np.array(table)
with viz.style():
    figure, panel = plt.subplots(figsize=(5, 2.4), layout="constrained")
    panel.plot(steps_of, table.T, color="#999999", lw=0.7)
    panel.plot(steps_of, table.mean(0), "o-", color="#0072B2", label="mean of ten")
    panel.axvspan(256, 4096, color="#0072B2", alpha=0.08, label="training")
    panel.set(xscale="log", xticks=steps_of, xlabel="Gaussians", ylabel="PSNR, dB")
    panel.set_xticks(steps_of, [f"{n:,}" for n in steps_of])
    panel.minorticks_off()
    panel.legend(fontsize=7)
    plt.show()
print("mean PSNR:", ", ".join(f"{n:,}: {v:.2f}" for n, v in zip(steps_of, table.mean(0), strict=True)))

# %% [markdown]
# **What to notice.** Steep up to 512, then flatter, and from 2,048 on it even bends down by a few tenths: more Gaussians than training was
# about make no new detail, and small ones beside the surface add up to a haze. A budget is not quality; the code is the limit.
#
# Play: the object, the budget, and the draw. The strip in the set-up is the static twin.

# %%
which = widgets.Dropdown(options=[(name, i) for i, name in enumerate(real.ids)], value=OBJECT, description="object")
budget_slider = widgets.SelectionSlider(options=[256, 512, 1024, 2048, 4096, 8192], value=1024, description="Gaussians",
                                        continuous_update=False)
draw_slider = widgets.IntSlider(0, min=0, max=20, description="draw", continuous_update=False)
screen = widgets.Output()


def redraw(change=None):
    with torch.no_grad():
        scene = model.decode(code_of(which.value), budget_slider.value, gen(draw_slider.value))[0]
    with screen:
        screen.clear_output(wait=True)
        display(viz.image_grid(look(scene, which.value, (0, 2, 4)), columns=3, labels=["front", "right", "back"]))


for control in (which, budget_slider, draw_slider):
    control.observe(redraw, "value")
widgets.VBox([which, budget_slider, draw_slider, screen])

# %% [markdown]
# ## Exercises
#
# The checks of 1, 2 and 4 draw new random inputs and compare with an independent computation. The solutions are in
# `notebooks/solutions`.
#
# ### Exercise 1 · Residual sampling (15 minutes)
#
# Between the comb and pure chance: a child first gets the whole part of $n p$ for sure; what is left over is drawn one by one, with
# probabilities in proportion to the fractions that were cut off. Return how many each child gets *for sure*, and the probabilities of
# the rest. Evidence: "passed".


# %% exercise="1"
# NBVAL_CHECK_OUTPUT
def sure_and_rest(n, p):
    """n a whole number, p (8,) of sum 1 -> sure (8,), whole numbers, and the probabilities (8,) of what is left."""
    ### BEGIN SOLUTION
    sure = (n * p).floor()
    rest = n * p - sure
    return sure, rest / rest.sum()
    ### END SOLUTION


check(nb10.exercise_1, sure_and_rest)

# %% [markdown]
# ### Exercise 2 · One pixel without one Gaussian (20 minutes)
#
# A pixel sees Gaussians from front to back with `alpha` (n,) and `color` (n, 3), before `background` (3,). Return for each how the
# pixel's colour changes if it is left out, $C_{\text{without } j} - C$, (n, 3), without compositing anew. Evidence: "passed".


# %% exercise="2"
# NBVAL_CHECK_OUTPUT
def changes(alpha, color, background):
    """(n,), (n, 3), (3,) -> (n, 3)."""
    ### BEGIN SOLUTION
    clear = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)])  # before each, and behind all
    shown = (clear[:-1] * alpha)[:, None] * color
    behind = shown.sum(0) - shown.cumsum(0) + clear[-1] * background
    return behind * (alpha / (1 - alpha))[:, None] - shown
    ### END SOLUTION


check(nb10.exercise_2, changes)

# %% [markdown]
# ### Exercise 3 · Predict, then run (5 minutes)
#
# The same density, 64 anchors, drawn 50 times. Across draws, the PSNR of one object spreads least if counts are handed on (a) one by
# one, (b) by residual sampling, (c) by the comb. Set `prediction` to the letter; then measure. Evidence: three standard deviations.

# %% exercise="3"
### BEGIN SOLUTION
prediction = "c"
if "model" in globals():
    with torch.no_grad():
        spread = {how: np.std([psnr(rasterize(model.decode(z, 256, gen(k), how)[0], AT[:2], WHITE).rgb.clamp(0, 1),
                                    target[:2]).item() for k in range(50)]) for how in WAYS}
    print(", ".join(f"{how}: {value:.3f} dB" for how, value in spread.items()))
### STUB
# prediction = None  # "a", "b" or "c"
### END SOLUTION
check(nb10.exercise_3, prediction)

# %% [markdown] solution=true
# The comb spreads the anchors most evenly, so that no part of the object is left bare by chance.

# %% [markdown]
# ### Exercise 4 · Debug: the density runs away (15 minutes)
#
# With this post-processing the density of section 4 gives up on half of the object: one anchor whose worth is huge counts as much as
# all others together. The three steps are right, their order is not. Remove the line with `raise` and the `#` in front of the lines
# below it, and put them in order. Evidence: "passed".


# %% exercise="4"
# NBVAL_CHECK_OUTPUT
def my_tamed(d):
    """d (P,) -> (P,): harm is 0, then clipped at the 0.9 quantile of |d|, then the mean taken off."""
    ### BEGIN SOLUTION
    d = d.clamp(max=0)
    most = d.abs().quantile(0.9)
    d = d.clamp(min=-most)
    return d - d.mean()
    ### STUB
    # raise NotImplementedError("exercise 4: remove this line and the # in front of the next ones, and mend their order")
    # # d = d - d.mean()
    # # most = d.abs().quantile(0.9)
    # # d = d.clamp(max=0)
    # # return d.clamp(min=-most)
    ### END SOLUTION


check(nb10.exercise_4, my_tamed)

# %% [markdown]
# ### Exercise 5 · Open: a group is not the sum of its members (30 minutes)
#
# An anchor's worth is taken as the sum over its four Gaussians, each left out alone. Leave all four out at once instead, for 50 anchors
# of a scene, and plot the one against the other, for 64 and for 1,024 anchors. Evidence: two scatter plots with their correlations,
# and one sentence: when does the sum say too little?
#
# ## Summary
#
# | claim | where you saw it |
# |---|---|
# | sampling has no derivative, its mean has | section 1 |
# | the worth of every Gaussian in one backward pass, exactly | section 3; `gsgen bench density --part 1` |
# | without the background it is wrong on white | section 3 |
# | a density learned from pictures against one from area | sections 1 and 4; `gsgen bench density --part 3` |
# | one code, any budget | section 5; `gsgen bench density --part 4` |
#
# ## References
#
# - DeG: Density-Sampled Gaussians, 2026 (2605.16355), and its released code.
# - Williams: Simple statistical gradient-following algorithms (REINFORCE), 1992. Kool et al.: Buy 4 REINFORCE samples, get a baseline
#   for free, 2019.
# - Douc, Cappe: Comparison of resampling schemes for particle filtering, 2005.
#
# ## Time and memory

# %%
print(time_and_memory(STARTED))
