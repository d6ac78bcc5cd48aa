# %% [markdown]
# # 01 · Gaussians and rendering
#
# CPU about 45 s · GPU not needed, used where there is one · nothing pretrained: what you see fitted is fitted
# here
#
# <!-- colab-badge -->
#
# 75 minutes to read, two hours for the exercises. Prerequisite: notebook 00; matrix products, eigenvectors, the
# multivariate normal distribution, and what a gradient and a Jacobian are.
#
# You build a differentiable rasterizer, starting from one Gaussian in the plane. Then you fit a real object from
# 24 pictures, and measure what splatting saves against ray marching.

# %% [markdown]
# ## You will be able to
#
# - turn a quaternion and three scales into a covariance, and read its axes off it (section 1);
# - project a Gaussian into an image, and say where the projection stops being right (section 2);
# - composite sorted splats from either end (section 3, exercise 1);
# - derive the gradient that trains an opacity (exercise 4);
# - fit a scene to pictures, tell by a held-out number whether the fit is good, and say what splatting saves against
#   ray marching (section 5).
#
# ## Set-up
#
# After the imports come the knobs. Turn one, run the notebook again, and compare. `FAST = False` fits three times
# as long. The first picture shows where this leads.

# %% tags=["setup"]
# (the set-up cell is inserted here)

# %% tags=["shared"]
import math
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numba
import numpy as np
import torch

from gsgen_lib import Cameras, Gaussians, rasterize, viz
from gsgen_lib.checks import check, cmp, nb01
from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.objects import mesh_path
from gsgen_lib.data.raycast import render_mesh, sample_surface
from gsgen_lib.doctor import time_and_memory
from gsgen_lib.metrics import psnr
from gsgen_lib.raster.gsplat_engine import why_not_gsplat
from gsgen_lib.raster.projection import ALPHA_MIN, EPS2D, MAX_ALPHA, T_MIN, project
from gsgen_lib.systems.fitting import FitConfig, fit, initial_scene

STARTED = time.perf_counter()
WHITE = (1.0, 1.0, 1.0)
FAST = True
SEED = 0
STEPS = 500 if FAST else 1500
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OBJECT = "chicken"

# %% alt="A chicken three times: ray cast from its mesh, as three thousand dots, and as three thousand soft blobs"
mesh = load_mesh(mesh_path(OBJECT))
camera = Cameras.orbit(1, azimuth=[30.0], width=128, height=128)
points, _, colors = (torch.as_tensor(x) for x in sample_surface(mesh, 3000, np.random.default_rng(SEED)))
blobs = Gaussians(points, torch.tensor([1.0, 0, 0, 0]).repeat(3000, 1), torch.full((3000, 3), 0.003),
                  torch.full((3000,), 0.9), colors)
photo = torch.as_tensor(render_mesh(mesh, camera).rgba)
photo = photo[..., :3] * photo[..., 3:] + 1 - photo[..., 3:]
splats = [rasterize(replace(blobs, scales=blobs.scales * k), camera, WHITE).rgb for k in (1, 5)]
labels = ["the mesh, ray cast", "3,000 dots", "the same dots, 5 x wider"]
viz.film_strip(torch.cat([photo, *splats]), labels, cell=1.9)

# %% [markdown]
# **What to notice.** A soft blob per surface point already closes the surface. But the blobs are round, equally
# large and placed blindly, so edges blur. The rest of this lesson gives each blob a shape, a depth and a
# gradient.
#
# ## 1 · One Gaussian
#
# What do a mean and a covariance do to a picture? In the plane, a Gaussian is
#
# $$G(p) = \exp\left(-\tfrac12 (p-\mu)^\top \Sigma^{-1} (p-\mu)\right)$$
#
# with $p$ = `points`, $\mu$ = `mean`, $\Sigma$ = `cov` and $^\top$ for the transpose. Its level sets are ellipses.
# Their axes are the eigenvectors of $\Sigma$; one standard deviation along an axis is the root of its eigenvalue.
#
# Before you run the next cell: all three covariances have the same diagonal. What can still differ?


# %% alt="Three Gaussians in the plane with their ellipses and axes: upright, tilted to the right, tilted to the left"
def gaussian_2d(points, mean, cov):
    """Value of a 2D Gaussian, 1 at its mean. points (..., 2), mean (2,), cov (2, 2) -> (...)."""
    d = points - mean
    return torch.exp(-0.5 * torch.einsum("...i,ij,...j->...", d, torch.linalg.inv(cov), d))


line = torch.linspace(-5, 5, 201)
grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (201, 201, 2), x first
with viz.style():
    figure, panels = plt.subplots(1, 3, figsize=(7.5, 2.7), sharey=True)
    for panel, tilt in zip(panels, (0.0, 1.2, -1.2), strict=True):
        cov = torch.tensor([[3.0, tilt], [tilt, 1.0]])
        value = gaussian_2d(grid, torch.zeros(2), cov)
        panel.imshow(value, extent=(-5, 5, -5, 5), origin="lower", cmap="cividis")
        panel.contour(line, line, value, [math.exp(-2), math.exp(-0.5)], colors="white", linewidths=1)
        variances, vectors = torch.linalg.eigh(cov)
        for x, y in (vectors * variances.sqrt()).T:  # one standard deviation along each axis
            panel.plot([-x, x], [-y, y], color="#E69F00", linewidth=2)
        panel.set_title(f"cov = [[3, {tilt:g}], [{tilt:g}, 1]]")
        panel.grid(False)
    plt.show()

# %% [markdown]
# **What to notice.** The diagonal fixes how far the blob reaches along x and y. The entry beside it tilts the
# ellipse (white: one and two standard deviations), and its sign says which way.
#
# Not every symmetric matrix is a covariance: an optimiser that moves the entries freely soon leaves the valid
# ones. So a scene stores a rotation and three lengths instead, and builds
#
# $$\Sigma = R\,S\,S^\top R^\top,\qquad R = I + 2w[h]_\times + 2[h]_\times^2$$
#
# with $S$ = `diag(scale)`, and $R$ from the unit quaternion `quat` $= (w, h)$, where $[h]_\times$ is the matrix
# of the cross product with $h$. The columns of $R$ are the axes. You write it for one Gaussian, then compare with
# the library. Take scales 0.3, 0.1, 0.1, turned by $\varphi = 30$ degrees about z: the entry $\Sigma_{xy}$ must be
# $\sin(\varphi)\,\cos(\varphi)\,(0.3^2 - 0.1^2)$.


# %%
# NBVAL_CHECK_OUTPUT
def covariance(quat, scale):
    """(4,) quaternion (w, x, y, z) and (3,) standard deviations -> rotation (3, 3), covariance (3, 3)."""
    w, x, y, z = quat / quat.norm()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    R = torch.eye(3) + 2 * w * cross + 2 * cross @ cross
    return R, R @ torch.diag(scale**2) @ R.T


turn = math.radians(30) / 2  # a quaternion holds half the angle
scale = torch.tensor([0.3, 0.1, 0.1])
R, Sigma = covariance(torch.tensor([math.cos(turn), 0, 0, math.sin(turn)]), scale)
print(f"Sigma_xy: {Sigma[0, 1]:.4f}, wanted {0.5 * math.sqrt(0.75) * (0.09 - 0.01):.4f}")

some = Gaussians.random(8, generator=torch.Generator().manual_seed(SEED))
mine = [covariance(q, s) for q, s in zip(some.quats, some.scales, strict=True)]
cmp("covariance", torch.stack([m[1] for m in mine]), some.covariances(), tol=1e-8)
cmp("eigenvalues", torch.linalg.eigvalsh(some.covariances()), (some.scales**2).sort(-1).values, tol=1e-8)

# %% [markdown]
# ## 2 · From space to the image
#
# A camera moves a point $\mu$ of the world into its own frame, $t = W\mu + \text{shift}$ (`viewmats`), and divides
# by depth: the pixel is $p_x = f_x t_x / t_z + c_x$, likewise $p_y$, with $f$ the focal length in pixels and $c$ the
# image's centre (both in `Ks`). Is the picture of a Gaussian a Gaussian again? Division is not linear, so no. Near
# the mean it almost is: replace it by its tangent there,
#
# $$\Sigma' = J\,W\,\Sigma\,W^\top J^\top,\qquad
# J = \begin{pmatrix} f_x/t_z & 0 & -f_x t_x/t_z^2 \\ 0 & f_y/t_z & -f_y t_y/t_z^2 \end{pmatrix}$$
#
# $J$ = `J` holds the derivatives of $p$ by $t$ at the mean; $\Sigma'$ = `covs2d` is in pixels squared. This is EWA
# splatting. In the code below, N is the number of Gaussians.
#
# Do you believe $J$? After `my_project` come two tests. The first asks chance: it draws many points from a 3D
# Gaussian, projects each exactly, and takes the covariance of where they land. Its control leaves out the third
# column of $J$, which says that moving a point towards the camera pushes it away from the image's centre.
#
# The second looks for the place where $J$ fails. It takes a round Gaussian with standard deviation 0.12, in one
# direction a little to the right, at depth 3, 1 and 0.4. An exact 2D Gaussian has 1.1 % of its mass outside the
# ellipse of three standard deviations. Before you run it: guess the share at depth 0.4.


# %%
def my_project(means, covariances, camera):
    """N Gaussians -> means2d (N, 2) and covs2d (N, 2, 2) in pixels, depths (N,), for one camera."""
    W, shift, K = camera.viewmats[0, :3, :3], camera.viewmats[0, :3, 3], camera.Ks[0]
    tx, ty, tz = (means @ W.T + shift).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    means2d = torch.stack([fx * tx / tz + cx, fy * ty / tz + cy], -1)
    zero = torch.zeros_like(tz)
    J = torch.stack([fx / tz, zero, -fx * tx / tz**2, zero, fy / tz, -fy * ty / tz**2], -1)
    JW = J.reshape(-1, 2, 3) @ W  # (N, 6) -> (N, 2, 3)
    return means2d, JW @ covariances @ JW.mT, tz


# %%
# NBVAL_CHECK_OUTPUT
side = Cameras.orbit(1, elevation=0.0, width=128, height=128)
mean = torch.tensor([[0.5, 0.3, 0.2]])
spread = torch.tensor([0.02, 0.02, 0.1])  # long along the optical axis, off the line of sight: J's third column counts
cloud = mean + spread * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(SEED))
landed = my_project(cloud, torch.zeros(1, 3, 3), side)[0]  # exact: no covariance needed
_, by_J, depth = my_project(mean, torch.diag(spread**2)[None], side)
flat = (side.Ks[0, 0, 0] / depth) ** 2 * torch.diag(spread[:2] ** 2)[None]  # J without its third column
print("standard deviations by J, in pixels:", torch.linalg.eigvalsh(by_J[0]).sqrt().numpy().round(1))
for name, guess in (("with J", by_J[0]), ("without its third column", flat[0])):
    error = (guess - torch.cov(landed.T)).norm() / torch.cov(landed.T).norm()
    print(f"{name}: within 5 % of the samples: {bool(error < 0.05)}")

# %% alt="Projected samples and the ellipse of J at depths 3, 1 and 0.4: at 0.4 the samples fan out of it"
# NBVAL_CHECK_OUTPUT
front = Cameras(torch.eye(4)[None], side.Ks, 128, 128)  # looks along +z from the origin
noise = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(SEED))
circle = torch.linspace(0, 2 * math.pi, 100)
circle = 3 * torch.stack([circle.cos(), circle.sin()], -1)
with viz.style():
    figure, panels = plt.subplots(1, 3, figsize=(7.5, 2.8), sharey=True, sharex=True)
    for panel, z in zip(panels, (3.0, 1.0, 0.4), strict=True):
        mean = torch.tensor([[0.3 * z, 0.0, z]])
        mean2d, cov2d, _ = my_project(mean, 0.12**2 * torch.eye(3)[None], front)
        cloud = mean + 0.12 * noise
        landed = my_project(cloud[cloud[:, 2] > 0.02], torch.zeros(1, 3, 3), front)[0]
        L = torch.linalg.cholesky(cov2d[0])  # L L^T = cov2d, so L^-1 turns the ellipse into a circle
        scaled = torch.linalg.solve(L, (landed - mean2d).T).T  # (samples, 2), in standard deviations
        share = (scaled.norm(dim=-1) > 3).float().mean()
        print(f"depth {z}: {100 * share:.2g} % outside three standard deviations")
        panel.scatter(*scaled[:1500].T, s=1, color="#0072B2")
        panel.plot(*circle.T, color="#E69F00", linewidth=2)
        panel.set(title=f"depth {z:g}", xlim=(-5, 10), ylim=(-7.5, 7.5), aspect="equal")
        panel.set_xlabel("x in standard deviations")
    panels[0].set_ylabel("y in standard deviations")
    plt.show()

# %% [markdown]
# **What to notice.** Far away, the samples fill the orange circle. Close by, they fan out to the right, where the
# nearer half of the ball lands, and no ellipse can follow. The library lives with it: it limits $t_x/t_z$ in $J$
# outside the image, leaves out what is nearer than 0.01, and your cameras keep their distance.
#
# ## 3 · Many Gaussians
#
# Which of two overlapping splats do you see? Sort them by depth and let each one stop a part $\alpha_i$ of the
# light that comes through those in front:
#
# $$\alpha_i = o_i \exp(-\sigma_i),\quad T_i = \prod_{j<i} (1-\alpha_j),\quad C = \sum_i T_i\,\alpha_i\,c_i +
# T_\text{end}\, b,\quad T_\text{end} = \prod_j (1-\alpha_j)$$
#
# $o$ = `opacities`, $\sigma$ = `sigma` $= \tfrac12 d^\top \Sigma'^{-1} d$ with $d$ from the splat's `means2d` to the
# pixel's centre, $T$ = `T`, the transmittance, $c$ = `colors`, $b$ = `background`. Four constants keep it stable and
# fast: the diagonal of $\Sigma'$ grows by `EPS2D` = 0.3, so that no splat falls between two pixels; $\alpha$ stays
# below `MAX_ALPHA` = 0.999, and counts as 0 below `ALPHA_MIN` = 1/255; a pixel stops before $T$ reaches `T_MIN` =
# 0.0001. Three layers of opacity 0.5 must get the weights 1/2, 1/4, 1/8.


# %%
# NBVAL_CHECK_OUTPUT
def my_composite(pixels, means2d, covs2d, opacities, colors):
    """Blend N splats, nearest first, at P pixel centres (P, 2) -> colours on black (P, 3), T_end (P,)."""
    conics = torch.linalg.inv(covs2d + EPS2D * torch.eye(2).to(covs2d))  # (N, 2, 2)
    d = pixels[:, None] - means2d  # (P, N, 2)
    sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", d, conics, d)
    alpha = (opacities * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
    alpha = alpha * (alpha >= ALPHA_MIN)
    alpha = alpha * (torch.cumprod(1 - alpha, 1) > T_MIN)  # the pixel is finished
    T = torch.cumprod(1 - alpha, 1)  # behind each splat
    T_before = torch.cat([torch.ones_like(T[:, :1]), T[:, :-1]], 1)
    return (T_before * alpha) @ colors, T[:, -1]


layers = torch.zeros(3, 2), torch.eye(2).repeat(3, 1, 1), torch.full((3,), 0.5), torch.eye(3)
weights, T_end = my_composite(torch.zeros(1, 2), *layers)
print("weights:", weights[0].tolist(), " left for the background:", T_end.item())

# %% [markdown]
# ### What if you forget to sort?
#
# `my_render` puts the pieces together. The scene: the chicken, and behind it a blue copy, which happens to lie
# first in memory. Before you run the next cell: the splats are drawn nearest first, then in the order in which
# they lie in memory. Opacities are 0.9. Which chicken will you see in the second picture?


# %% alt="A brown chicken before a blue one, drawn nearest first; and unsorted, where the blue one covers the brown"
# NBVAL_CHECK_OUTPUT
def my_render(g, camera, background, in_order=True):
    """One picture (H, W, 3) of a scene with RGB colours."""
    means2d, covs2d, depths = my_project(g.means, g.covariances(), camera)
    i = depths.argsort() if in_order else torch.arange(g.num)
    ys, xs = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], -1).to(g.means)  # (height, width, 2)
    rgb, T_end = my_composite(pixels.reshape(-1, 2), means2d[i], covs2d[i], g.opacities[i], g.colors[i])
    return (rgb + T_end[:, None] * background).reshape(*pixels.shape[:2], 3)


brown = replace(blobs, scales=blobs.scales * 7).select(slice(0, 1000))
blue = replace(brown, means=brown.means + torch.tensor([0.0, 0.05, -0.55]), colors=brown.colors.flip(-1))
pair, small, white = Gaussians.cat([blue, brown]), camera.resize(64, 64), torch.ones(3)
drawn = {"nearest first": my_render(pair, small, white), "unsorted": my_render(pair, small, white, in_order=False)}
library = rasterize(pair, small, WHITE).rgb[0]
for name, image in drawn.items():
    print(f"{name}: PSNR to the library >= 40 dB: {bool(psnr(image, library) >= 40)}")
viz.film_strip(list(drawn.values()), list(drawn), cell=2.2)

# %% [markdown]
# **What to notice.** Unsorted, the far chicken covers the near one: compositing believes whatever comes first.
# Sorting is no polish; it is the only place where the rasterizer learns what hides what.
#
# ### Colour that depends on where you stand
#
# A real surface may look different from different sides. A splat can hold, instead of RGB, coefficients of
# spherical harmonics: functions $Y_k$ of the direction $\omega$ from the camera to the splat,
#
# $$c(\omega) = \max\left(0, \tfrac12 + \textstyle\sum_k \text{colors}_k\,Y_k(\omega)\right),\qquad
# Y_0 = 0.2821,\quad Y_{1,2,3} = 0.4886\,(-\omega_y,\, \omega_z,\, -\omega_x)$$
#
# Put 0.8 into the red channel of $Y_3$. From the right (+x) you look along $\omega = (-1, 0, 0)$ and see the red
# $\tfrac12 + 0.8 \cdot 0.4886$. Before you run the next cell: how red is it from the front, and from the left?

# %% alt="One blob from eight sides: reddish from the right, grey from front and back, turquoise from the left"
# NBVAL_CHECK_OUTPUT
sh = torch.zeros(1, 4, 3)
sh[0, 3, 0] = 0.8
moody = Gaussians(torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2), torch.ones(1), sh)
around = rasterize(moody, Cameras.orbit(8, elevation=0.0, width=49, height=49), WHITE)
on_black = around.rgb - (1 - around.alpha)
red = (on_black / around.alpha.clamp_min(1e-6))[:, 24, 24, 0]  # at the centre of each view
for name, view, wanted in (("front", 0, 0.5), ("right", 2, 0.5 + 0.8 * 0.4886), ("left", 6, 0.5 - 0.8 * 0.4886)):
    print(f"{name:<6} red {red[view]:.3f}, by hand {wanted:.3f}")
viz.film_strip(around.rgb, [f"{45 * i}°" for i in range(8)])

# %% [markdown]
# **What to notice.** One splat, one set of numbers, eight colours. Four coefficients per channel can only shade
# from one side to the other; the library goes to 16, enough for soft highlights but not for a mirror.
#
# ## 4 · Yours and the library's
#
# Is what you wrote a rasterizer, or something that looks like one? Compare values and gradients, for a scene with
# thin, wide, faint and opaque splats. PyTorch differentiates yours. The library has engines: `reference` is
# PyTorch too, cut into tiles; `numba` is compiled loops with derivatives written by hand; `gsplat` is CUDA
# kernels. Each gradient is divided by the largest entry of yours.


# %%
# NBVAL_CHECK_OUTPUT
def picture_and_gradients(draw):
    """Values and gradients of a weighted sum of one picture's pixels."""
    g = Gaussians.random(400, scale=0.05, generator=torch.Generator().manual_seed(SEED)).requires_grad_()
    background = torch.full((3,), 0.6, requires_grad=True)
    image = draw(g, background)
    (image * torch.linspace(-1, 1, image.numel()).reshape(image.shape)).sum().backward()
    gradients = {name: getattr(g, name).grad for name in ("means", "quats", "scales", "opacities", "colors")}
    return {"picture": image} | gradients | {"background": background.grad}


def in_one(results):
    """All gradients in one vector, each divided by the largest entry of yours."""
    return torch.cat([(results[k] / mine[k].abs().max()).flatten() for k in mine if k != "picture"])


view = Cameras.orbit(1, width=48, height=40)
mine = picture_and_gradients(lambda g, back: my_render(g, view, back))
for engine in ("reference", "numba"):
    theirs = picture_and_gradients(lambda g, back: rasterize(g, view, back, engine=engine).rgb[0])
    cmp(f"{engine} picture", theirs["picture"], mine["picture"])
    cmp(f"{engine} gradients", in_one(theirs), in_one(mine), tol=1e-4)
unsorted = picture_and_gradients(lambda g, back: my_render(g, view, back, in_order=False))
print("and unsorted, the gradients agree:", bool((in_one(unsorted) - in_one(mine)).abs().max() < 1e-4))

# %% [markdown]
# ### How fast is each?
#
# Yours asks every splat at every pixel. Tiles ask only the splats whose box touches a tile of 16 × 16 pixels.
# Before you run the next cell: of all (splat, pixel) pairs, which part reaches 1/255, and so matters at all?
# Timings are of one forward and one backward pass on this machine, best of three.


# %%
def milliseconds(job, clock=time.perf_counter, runs=3):
    """What the job returns, and its best time of some runs; perf_counter is the clock on the wall."""
    times = []
    for _ in range(runs):
        begun = clock()
        result = job()
        times.append(clock() - begun)
    return result, 1000 * min(times)


def both_passes(draw, count, size):
    """Time of one picture and its gradients."""
    g = Gaussians.random(count, generator=torch.Generator().manual_seed(SEED)).requires_grad_()
    camera = Cameras.orbit(1, width=size, height=size)
    return milliseconds(lambda: draw(g, camera).sum().backward())[1]


print(f"{'1,000 splats, 64 px':>33}{'4,000 splats, 128 px':>24}")
print(f"{'yours, dense':<14}{both_passes(lambda g, c: my_render(g, c, white), 1000, 64):>16.1f} ms{'-':>21}")
for engine in ("reference", "numba"):
    small_ms, large_ms = (both_passes(lambda g, c: rasterize(g, c, WHITE, engine=engine).rgb, n, size)
                          for n, size in ((1000, 64), (4000, 128)))
    print(f"{engine:<14}{small_ms:>16.1f} ms{large_ms:>18.1f} ms")
print(f"gsplat: {why_not_gsplat() or 'runs here; engine=auto takes it for tensors on CUDA'}")

# %%
# NBVAL_CHECK_OUTPUT
p = project(Gaussians.random(1000, generator=torch.Generator().manual_seed(SEED)), small)
first, last = ((p.means2d[0] - p.radii[0]) / 16).floor(), ((p.means2d[0] + p.radii[0]) / 16).floor()
in_tiles = 256 * (last.clamp_max(3) - first.clamp_min(0) + 1).prod(-1).sum()
A, B, C = p.conics[0].unbind(-1)  # sigma < log(255 o) is an ellipse, of this area in pixels:
reached = (2 * math.pi * torch.log(255 * p.opacities[0]) / (A * C - B * B).sqrt()).sum()
print(f"of all {1000 * 64 * 64:,} pairs, one in {4.096e6 / in_tiles:.0f} lies in a touched tile,",
      f"one in {4.096e6 / reached:.0f} reaches 1/255")

# %% [markdown]
# **What to notice.** Few pairs matter. Tiles skip four fifths of all, the compiled loops also skip rows within a
# tile. The derivative written by hand (exercise 4) keeps two running numbers per pixel, where autograd stores
# every pair.
#
# ## 5 · A real object
#
# A rasterizer with gradients turns pictures into a scene: render, compare, step. You take 24 pictures of the
# chicken, with known cameras, and hold out 8 more that the fit never sees. It starts from 400 grey blobs inside the
# silhouettes and minimises $0.8\,|C - C^\star|_1 + 0.2\,(1 - \text{SSIM})$, where $C^\star$ is the photo, and SSIM
# is 1 where local means, contrasts and patterns agree. Each step draws another random background, else white splats
# could hide in a white one.
#
# Gradient descent moves Gaussians, but makes none. So every few steps the fit **densifies**: where the loss pulls
# a 2D mean hard, it clones small Gaussians, splits large ones, and drops transparent ones. Is that worth it? The
# controls: no densification; and no densification, but as many Gaussians from the start. A splat that fills less
# than one pixel in all 24 pictures together counts as idle. `filled` finds out by a gradient: a picture is linear in
# a splat's colour, so the derivative of the sum of all pixels is the sum of its weights $T \alpha$.
#
# Before you run the next cell: which of the three wins on the held-out pictures?


# %%
def photograph(cameras):
    """Straight-alpha pictures (V, H, W, 4) of the object."""
    return torch.as_tensor(render_mesh(mesh, cameras).rgba).to(DEVICE)


train = Cameras.orbit(24, elevation=[-10.0, 15.0, 40.0] * 8).resize(128, 128).to(DEVICE)
between = [45 * i + 22.5 for i in range(8)]
test = Cameras.orbit(8, elevation=[0.0, 30.0] * 4, azimuth=between).resize(128, 128).to(DEVICE)
photos, held_out = photograph(train), photograph(test)
truth = held_out[..., :3] * held_out[..., 3:] + 1 - held_out[..., 3:]  # on white
config = FitConfig(steps=STEPS, init=400, max_gaussians=4000, densify_every=max(1, STEPS // 25))


def scores(scene):
    """PSNR in dB of each held-out picture."""
    return psnr(rasterize(scene, test, WHITE).rgb.clamp(0, 1), truth, reduction="none")


def filled(scene):
    """Pixels that each splat fills in all training pictures together, (N,): its weights T alpha, summed."""
    colors = scene.colors.clone().requires_grad_()
    rasterize(replace(scene, colors=colors), train).rgb[..., 0].sum().backward()
    return colors.grad[:, 0]


def run_fit(**options):
    return fit(photos, train, generator=torch.Generator().manual_seed(SEED), progress=False, **options)


grown = run_fit(config=config, snapshot_every=STEPS // 20)
few = run_fit(config=config, densify=False)
many = run_fit(config=replace(config, init=grown.gaussians.num), densify=False)
table = {}
for name, run in (("densified", grown), ("400 all along", few), ("as many, from the start", many)):
    table[name] = scores(run.gaussians).mean(), (filled(run.gaussians) < 1).float().mean()
    print(f"{name:<24}held-out PSNR {table[name][0]:.1f} dB, idle {100 * table[name][1]:4.1f} %")

# %% tags=["main"] alt="400 grey blobs become a chicken; below, its splats shrunk: few large, then many small"
# NBVAL_CHECK_OUTPUT
for name, (score, idle) in table.items():
    print(f"{name}: held-out PSNR >= 30 dB: {bool(score >= 30)}; under 5 % idle splats: {bool(idle < 0.05)}")
blank = initial_scene(photos, train, config.init, torch.Generator().manual_seed(SEED))
kept = [(0, blank)] + [grown.snapshots[i] for i in (1, 3, 7, 19)]
rows = {label: [rasterize(replace(g, scales=k * g.scales), test[0], WHITE).rgb[0] for _, g in kept]
        for label, k in (("render", 1.0), ("shrunk to 0.4", 0.4))}
captions = [f"{g.num:,} splats, {scores(g)[0]:.0f} dB" for _, g in kept]
viz.compare(rows, [f"step {step}" for step, _ in kept], {"render": captions})

# %% [markdown]
# **What to notice.** The number of splats grows sixfold, and small ones gather where the detail is: head, legs,
# tail. So it is worth it: compare the three lines of the table. As many splats from the start lose more than 1 dB,
# and a quarter of them idle: they were scattered through the whole body, and a splat that others hide gets no
# gradient to move it out.
#
# ### What does splatting save?
#
# The other way to draw such a scene is to **march**: go along each ray in steps of length $\delta$, ask the scene at
# each step (a **sample**) for its density $\rho$, and composite $1 - \exp(-\rho \delta)$, as radiance fields do. Is
# splatting far cheaper, for the same picture?
#
# Give the same Gaussians a density. A pixel's ray is $r(s) = e + s\,\omega$, with $e$ the eye and $\omega$ a unit
# vector (`rays`). On it a Gaussian has the value $\exp(-\tfrac12(a s^2 - 2 \beta s + \kappa))$ with
#
# $$a = \omega^\top \Sigma^{-1} \omega,\quad \beta = \omega^\top \Sigma^{-1} (\mu - e),\quad
# \kappa = (\mu - e)^\top \Sigma^{-1} (\mu - e)$$
#
# This is a bell around $s = \beta/a$ = `at`, of width $1/\sqrt a$ = `width`; its peak, times $o$, is $\alpha$. Let the
# density integrate to $-\ln(1 - \alpha)$: alone, the Gaussian then stops exactly what its splat stops.
#
# | way to draw | what each ray does |
# |---|---|
# | splat (`samples=0`) | take Gaussian after Gaussian, nearest first, each as a whole |
# | march with `skip` | add each Gaussian to those samples that lie in its bell |
# | march without `skip` | add each Gaussian to all samples: nobody knows where it lies |
#
# One compiled function does all three, for the same Gaussians and pixels. What they share is prepared before the
# clock starts: `tiles_of` finds the Gaussians that can touch each tile, and widens each by what `EPS2D` means at its
# depth. The clock counts processor time: that of all threads, added.
#
# Before you run the third cell: by what factor is marching with 128 samples slower than splatting, in the same
# loop?


# %%
@numba.njit(fastmath=True)
def march_rays(rays, inverse, beta, kappa, opacities, colors, start, step, samples, skip):
    """(P, 3) colours on white of P unit rays (P, 3) through M Gaussians, nearest first.

    inverse (M, 3, 3) is the inverse of Sigma, beta (M, 3) = inverse @ (mu - e), kappa (M,).
    """
    image = np.zeros((len(rays), 3))
    for p in range(len(rays)):
        (x, y, z), T = rays[p], 1.0
        density, light = np.zeros(samples), np.zeros((samples, 3))
        for i in range(len(kappa)):
            a = inverse[i, 0, 0] * x * x + inverse[i, 1, 1] * y * y + inverse[i, 2, 2] * z * z
            a += 2 * (inverse[i, 0, 1] * x * y + inverse[i, 0, 2] * x * z + inverse[i, 1, 2] * y * z)
            at, width = (beta[i, 0] * x + beta[i, 1] * y + beta[i, 2] * z) / a, 1 / math.sqrt(a)
            alpha = min(MAX_ALPHA, opacities[i] * math.exp(-0.5 * (kappa[i] - a * at * at)))
            if alpha < ALPHA_MIN:
                continue
            if samples == 0:  # splat: the whole Gaussian at once
                for c in range(3):
                    image[p, c] += T * alpha * colors[i, c]
                T *= 1 - alpha
                if T < T_MIN:
                    break
            reach = 3.4 * width if skip else 100.0
            first, last = max(0, int((at - reach - start) / step)), min(samples, int((at + reach - start) / step) + 1)
            for k in range(first, last):  # march: a bit of it at each sample
                off = (start + (k + 0.5) * step - at) / width
                rho = -math.log(1 - alpha) * math.exp(-0.5 * off * off) / (width * math.sqrt(2 * math.pi))
                density[k] += rho
                for c in range(3):
                    light[k, c] += rho * colors[i, c]
        for k in range(samples):
            stopped = 1 - math.exp(-density[k] * step)
            for c in range(3):
                image[p, c] += T * stopped * light[k, c] / (density[k] + 1e-9)
            T *= 1 - stopped
        for c in range(3):
            image[p, c] += T
    return image


# %%
def tiles_of(scene, camera, size=16):
    """A list of (rows and columns, rays, what march_rays needs to know of the Gaussians there), one per tile."""
    depths = project(scene, camera).depths[0]
    blur = EPS2D * (depths / camera.Ks[0, 0, 0]) ** 2  # in world units squared
    scene = replace(scene, scales=(scene.scales**2 + blur[:, None]).sqrt()).select(depths.argsort())
    p, rays = project(scene, camera, eps2d=0.0), camera.rays()[1][0]
    inverse, offset = torch.linalg.inv(scene.covariances().double()), (scene.means - camera.centers[0]).double()
    beta = (inverse @ offset[..., None])[..., 0]
    low, high, tiles = p.means2d[0] - p.radii[0], p.means2d[0] + p.radii[0], []
    for y in range(0, camera.height, size):
        for x in range(0, camera.width, size):
            corner, block = torch.tensor([x, y]), (slice(y, y + size), slice(x, x + size))
            touch = ((low < corner + size) & (high > corner) & (p.radii[0] > 0)).all(-1)
            known = inverse, beta, (beta * offset).sum(-1), scene.opacities, scene.colors
            tiles.append((block, rays[block].reshape(-1, 3).numpy(), [v[touch].numpy() for v in known]))
    return tiles


def march(tiles, camera, samples, skip=True, start=1.1, end=2.5):
    """One picture (H, W, 3) on white; start, end: where the object begins and ends along a ray."""
    image = torch.empty(camera.height, camera.width, 3)
    for block, rays, known in tiles:
        colors = march_rays(rays, *known, start, (end - start) / max(samples, 1), samples, skip)
        image[block] = torch.from_numpy(colors).reshape(image[block].shape).float()
    return image

# %%
fitted, seat, photo = grown.gaussians.to("cpu"), test[0].to("cpu"), truth[0].cpu()
tiles, pictures, cost = tiles_of(fitted, seat), {}, {}
ways = {"splat, the loop above": lambda: march(tiles, seat, 0)}
ways |= {f"march, {n} samples": lambda n=n: march(tiles, seat, n) for n in (16, 32, 64, 128)}
ways["march, 128, without skip"] = lambda: march(tiles, seat, 128, skip=False)
ways["splat, library, with its tiles"] = lambda: rasterize(fitted, seat, WHITE).rgb[0]
for name, draw in ways.items():
    image, cost[name] = milliseconds(draw, time.process_time, runs=6)
    pictures[name], times = image.clamp(0, 1), cost[name] / cost["splat, the loop above"]
    print(f"{name:<31}{cost[name]:>7.1f} ms, {times:>5.2f} x the loop; {psnr(pictures[name], photo):.2f} dB")

# %% alt="Photo, splats, and marching with 16, 32 and 128 samples: with 16 the legs are lost, 128 looks like splats"
# NBVAL_CHECK_OUTPUT
splatted = pictures["splat, library, with its tiles"]
for name in ("splat, the loop above", "march, 16 samples", "march, 128 samples"):
    loss = psnr(splatted, photo) - psnr(pictures[name], photo)
    print(f"{name}: as good as the library's splats, within 0.5 dB: {bool(loss < 0.5)}")
names = ["march, 16 samples", "march, 32 samples", "march, 128 samples"]
viz.film_strip([photo, splatted, *(pictures[n] for n in names)], ["photo", "splat", *names], cell=1.7)

# %% [markdown]
# **What to notice.** With 16 samples the legs are lost between two samples; with 128 both ways show the same picture
# equally well. Read the price by its parts. In the same loop, marching costs two to four times as much with `skip`, and
# more than ten times without it. `skip` is knowledge that splatting brought along: where on the ray each Gaussian lies.
# A field known only by asking it, such as a network, has none.
#
# The rest is the engine: a splat is a small regular job, projected once, that suits vector instructions and the rows
# of a tile. So the library needs less than the loop, although it also pays for its tiles. One saving is missing here:
# a march could stop behind an opaque surface, as the splats do.

# %% [markdown]
# ## Exercises
#
# Each check draws new random inputs and compares with an independent computation. The solutions are in
# `notebooks/solutions`.
#
# ### Exercise 1 · From the back (10 minutes)
#
# Section 3 walks from front to back and carries `T` along. Write `back_to_front`, which starts from the
# background, walks to the front, and needs no `T` (on your honour: the check sees only the colour). Evidence:
# "passed".


# %% exercise="1"
# NBVAL_CHECK_OUTPUT
def back_to_front(alphas, colors, background):
    """(N,) alphas and (N, 3) colours, nearest first, on (3,) background -> the pixel's colour (3,)."""
    ### BEGIN SOLUTION
    color = background
    for alpha, c in zip(alphas.flip(0), colors.flip(0), strict=True):
        color = alpha * c + (1 - alpha) * color
    return color
    ### END SOLUTION


check(nb01.exercise_1, back_to_front)

# %% [markdown] solution=true
# Each layer covers a part `alpha` of whatever has been painted so far. The result is the sum of section 3,
# multiplied out from the inside. Front to back is preferred all the same: it can stop early.

# %% [markdown]
# ### Exercise 2 · How large is a splat? (20 minutes)
#
# Tiles need the smallest box around a splat outside of which alpha is below 1/255. Write `half_box`: its half
# width and half height in pixels. Evidence: "passed", and a sentence on why a faint splat needs less than three
# standard deviations.


# %% exercise="2"
def half_box(cov2d, opacity):
    """2D covariance (2, 2), already with EPS2D, and opacity () -> (2,): half width, half height."""
    ### BEGIN SOLUTION
    reach = (2 * torch.log(255 * opacity)).sqrt()  # opacity exp(-reach^2 / 2) = 1/255
    return reach * cov2d.diagonal().sqrt()
    ### END SOLUTION


check(nb01.exercise_2, half_box)

# %% [markdown] solution=true
# The ellipse at `reach` standard deviations reaches `reach * sqrt(Sigma_xx)` along x, however it is tilted. At
# opacity 0.05, `reach` is 2.3: the splat falls below 1/255 before three standard deviations.

# %% [markdown]
# ### Exercise 3 · Predict, then run (10 minutes)
#
# You double a scene in size (`scene.transform(scale=2)`) and move the camera twice as far away. The picture is
# then (a) the same, (b) sharper, because `EPS2D` counts for less, (c) darker, because the light spreads. Set
# `prediction`, then render both and compare. Evidence: a line of `cmp`, and what it means for a scene known only
# from pictures.

# %% exercise="3"
scene = Gaussians.random(200, generator=torch.Generator().manual_seed(SEED))
close, away = Cameras.orbit(1, radius=1.8), Cameras.orbit(1, radius=3.6)
### BEGIN SOLUTION
prediction = "a"
cmp("picture", rasterize(scene.transform(scale=2), away).rgb, rasterize(scene, close).rgb)
### STUB
# prediction = None  # "a", "b" or "c"; then one line: cmp("picture", ..., rasterize(scene, close).rgb)
### END SOLUTION
check(nb01.exercise_3, prediction)

# %% [markdown] solution=true
# Pictures cannot tell a small near scene from a large far one. Known cameras fix the size, which is why data sets
# agree on one: objects inside the unit cube.

# %% [markdown]
# ### Exercise 4 · Derive the gradient (40 minutes)
#
# Let $L = v \cdot C$, with $v$ = `v` the gradient that arrives at the pixel. Derive
# $\partial L / \partial \alpha_j$: how does more of layer $j$ change its own light, and what does it do to $R_j$, the
# light from behind layer $j$ as it reaches the eye? Then write `alpha_gradient` without autograd (on your honour).
# Evidence: "passed", and one line that says which two running numbers you carry along. It is the line `d_alpha` in
# `gsgen_lib/raster/numba_composite.py`.


# %% exercise="4"
# NBVAL_CHECK_OUTPUT
def alpha_gradient(alphas, colors, background, v):
    """(N,) alphas, (N, 3) colours, nearest first; background and v (3,) -> dL/dalpha (N,)."""
    ### BEGIN SOLUTION
    T = torch.cat([torch.ones_like(alphas[:1]), torch.cumprod(1 - alphas, 0)])  # T[N] = T_end
    light = T[:-1] * alphas * (colors @ v)  # what each layer sends to the eye, as L sees it
    behind = light.sum() - light.cumsum(0) + T[-1] * (background @ v)  # R_j
    return T[:-1] * (colors @ v) - behind / (1 - alphas)
    ### END SOLUTION


check(nb01.exercise_4, alpha_gradient)

# %% [markdown] solution=true
# Layer j sends $T_j \alpha_j (c_j \cdot v)$, which gives $T_j (c_j \cdot v)$. The light from behind it holds, as it
# reaches the eye, one factor $(1 - \alpha_j)$, so its derivative is $-R_j / (1 - \alpha_j)$ with $R_j$ = `behind`,
# already multiplied by $v$. Front to back you carry $T$ and $R$.

# %% [markdown]
# ### Exercise 5 · Open: how exact must the cameras be? (45 minutes)
#
# Real cameras are estimated, with errors. The next cell photographs the chicken at 64 pixels. Disturb the azimuths of
# these cameras by random angles of some degrees (`torch.randn`), keep the pictures, `fit` with `config=quick,
# densify=False`, and measure the PSNR on `unseen`. Evidence: a plot over at least four angles with two seeds each,
# and how many degrees cost you 3 dB. What do the fitted splats do to explain pictures that disagree?

# %% exercise="5"
mesh, quick = load_mesh(mesh_path(OBJECT)), FitConfig(steps=150, init=1500)
azimuth = torch.arange(24) * 15.0
images = torch.as_tensor(render_mesh(mesh, Cameras.orbit(24, azimuth=azimuth)).rgba)
unseen = Cameras.orbit(8, azimuth=torch.arange(8) * 45.0 + 22.5)
goal = torch.as_tensor(render_mesh(mesh, unseen).rgba)
goal = goal[..., :3] * goal[..., 3:] + 1 - goal[..., 3:]


def unseen_psnr(degrees, seed):
    """Fit with cameras that are wrong by about `degrees`, and score the views that the fit never saw."""
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    guessed = Cameras.orbit(24, azimuth=azimuth + degrees * torch.randn(24, generator=generator))
    scene = fit(images, guessed, config=quick, densify=False, generator=generator, progress=False).gaussians
    return psnr(rasterize(scene, unseen, WHITE).rgb.clamp(0, 1), goal).item()
    ### END SOLUTION


# %% solution=true alt="Held-out PSNR against the error of the cameras, two seeds: it falls steadily"
angles = [0.0, 2.0, 4.0, 8.0, 16.0]
score = np.array([[unseen_psnr(degrees, seed) for seed in (0, 1)] for degrees in angles])  # (angles, seeds)
for degrees, pair in zip(angles, score, strict=True):
    print(f"error {degrees:4.0f} degrees: held-out PSNR {pair[0]:.1f} and {pair[1]:.1f} dB")
lost = score[0].mean() - score.mean(1)
print(f"3 dB are lost at about {np.interp(3, lost, angles):.0f} degrees")
with viz.style():
    figure, axis = plt.subplots(figsize=(4.5, 2.8))
    for seed, line in enumerate(score.T):
        axis.plot(angles, line, marker="o", label=f"seed {seed}")
    axis.set(xlabel="error of the azimuths, degrees", ylabel="held-out PSNR, dB")
    axis.legend()
    plt.show()

# %% [markdown] solution=true
# About 7 degrees cost 3 dB; the seeds differ by up to 0.9 dB, so do not read it more exactly. Splats become blurred, or
# float in front of single cameras, where no other picture contradicts them.

# %% [markdown]
# ## Summary
#
# | claim | where you saw it |
# |---|---|
# | rotation and scales always give a valid covariance, whose axes are the columns of R | section 1, `covariance` |
# | J projects small Gaussians well, wide near ones badly | section 2, samples against J |
# | compositing needs depth order | section 3, two chickens |
# | spherical harmonics give one splat many colours | section 3, eight sides |
# | your rasterizer equals two engines, in value and gradient | section 4 |
# | few pairs of splat and pixel matter | section 4, pairs |
# | densification beats a fixed number of splats | section 5, held-out PSNR |
# | marching the same Gaussians costs several times as much for the same picture | section 5, last table |
#
# ## References
#
# - Kerbl, Kopanas, Leimkühler, Drettakis: 3D Gaussian Splatting for Real-Time Radiance Field Rendering, 2023:
#   blending eq. 3, Gaussian eq. 4, projection eq. 5, covariance eq. 6, loss eq. 7, densification section 5.
# - Zwicker, Pfister, van Baar, Gross: EWA Splatting, 2002: J eq. 29, projected covariance eq. 31.
# - Mildenhall et al.: NeRF, 2020: marching, eq. 3. Porter, Duff: Compositing Digital Images, 1984.
# - Ye et al.: gsplat, 2024: the constants and culling tests. Sloan: Stupid Spherical Harmonics Tricks, 2008.
#
# ## Time and memory

# %%
print(time_and_memory(STARTED))
