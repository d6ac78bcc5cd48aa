# %% [markdown]
# # 01 · Gaussians and rendering
#
# CPU about 45 s · GPU not needed, used where there is one · nothing pretrained: what you see fitted is fitted
# here
#
# <!-- colab-badge -->
#
# Prerequisite: notebook 00, matrix products, and what a gradient is. An hour to study.
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
# - fit a scene to pictures, and tell by a held-out number whether the fit is good (section 5).
#
# ## Set-up
#
# After the imports come the knobs. Turn one, run the notebook again, and compare. `FAST = False` fits three times
# as long. The first picture shows the object of section 5, so that you know where this leads.

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
from gsgen_lib.scene.gaussians import quat_to_rotmat
from gsgen_lib.systems.fitting import FitConfig, fit

STARTED = time.perf_counter()
WHITE = (1.0, 1.0, 1.0)

# %% tags=["shared"]
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
# with $p$ = `points`, $\mu$ = `mean`, $\Sigma$ = `cov`. Its level sets are ellipses. Their axes are the
# eigenvectors of $\Sigma$; one standard deviation along an axis is the root of its eigenvalue.
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
    for panel, b in zip(panels, (0.0, 1.2, -1.2), strict=True):
        cov = torch.tensor([[3.0, b], [b, 1.0]])
        value = gaussian_2d(grid, torch.zeros(2), cov)
        panel.imshow(value, extent=(-5, 5, -5, 5), origin="lower", cmap="cividis")
        panel.contour(line, line, value, [math.exp(-2), math.exp(-0.5)], colors="white", linewidths=1)
        variances, vectors = torch.linalg.eigh(cov)
        for x, y in (vectors * variances.sqrt()).T:  # one standard deviation along each axis
            panel.plot([-x, x], [-y, y], color="#E69F00", linewidth=2)
        panel.set_title(f"cov = [[3, {b:g}], [{b:g}, 1]]")
        panel.grid(False)
    plt.show()

# %% [markdown]
# **What to notice.** The diagonal fixes how far the blob reaches along x and y. The entry beside it tilts the
# ellipse (white: one and two standard deviations), and its sign says which way.
#
# Not every symmetric matrix is a covariance: an optimiser that moves the entries freely soon leaves the valid
# ones. So a scene stores a rotation and three lengths instead, and builds
#
# $$\Sigma = R\,S\,S^\top R^\top,\qquad R = I + 2w[v]_\times + 2[v]_\times^2$$
#
# with $S$ = `diag(scale)`, and $R$ from the unit quaternion `quat` $= (w, v)$, where $[v]_\times$ is the matrix
# of the cross product with $v$. The columns of $R$ are the axes. You write it for one Gaussian, then compare with
# the library. Take scales 0.3, 0.1, 0.1, turned by 30° about z: the entry $\Sigma_{xy}$ must be
# $\sin 30° \cos 30° (0.3^2 - 0.1^2)$.


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
# A camera turns a point $x$ of the world into $t = (t_x, t_y, t_z)$ of its own frame, $t = Wx + \text{shift}$
# (`viewmats`), and divides by depth: $u = f_x t_x / t_z + c_x$, likewise $v$ (`Ks`). Is the picture of a Gaussian
# a Gaussian again? Division is not linear, so no. Near the mean it almost is: replace it by its tangent there,
#
# $$\Sigma' = J\,W\,\Sigma\,W^\top J^\top,\qquad
# J = \begin{pmatrix} f_x/t_z & 0 & -f_x t_x/t_z^2 \\ 0 & f_y/t_z & -f_y t_y/t_z^2 \end{pmatrix}$$
#
# $J$ = `J` holds the derivatives of $(u, v)$ by $t$ at the mean; $\Sigma'$ = `covs2d` is in pixels squared. This
# is EWA splatting. In the code below, N is the number of Gaussians.
#
# Do you believe $J$? Ask chance instead: the second cell draws many points from the 3D Gaussian, projects each
# exactly, and takes the covariance of where they land. Its control leaves out the third column of $J$, which says
# that what is nearer lies farther from the image's centre.


# %%
def my_project(means, covariances, camera):
    """N Gaussians -> means2d (N, 2) and covs2d (N, 2, 2) in pixels, depths (N,), for one camera."""
    W, K = camera.viewmats[0], camera.Ks[0]
    x, y, z = (means @ W[:3, :3].T + W[:3, 3]).unbind(-1)
    fx, fy = K[0, 0], K[1, 1]
    means2d = torch.stack([fx * x / z + K[0, 2], fy * y / z + K[1, 2]], -1)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2], -1)
    JW = J.reshape(-1, 2, 3) @ W[:3, :3]  # (N, 6) -> (N, 2, 3)
    return means2d, JW @ covariances @ JW.mT, z


# %%
# NBVAL_CHECK_OUTPUT
side = Cameras.orbit(1, elevation=0.0, width=128, height=128)
mean, spread = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([0.02, 0.02, 0.1])  # long along the line of sight
cloud = mean + spread * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(SEED))
landed = my_project(cloud, torch.zeros(1, 3, 3), side)[0]  # exact: no covariance needed
_, by_J, depth = my_project(mean, torch.diag(spread**2)[None], side)
flat = (side.Ks[0, 0, 0] / depth) ** 2 * torch.diag(spread[:2] ** 2)[None]  # J without its third column
print("standard deviations by J, in pixels:", torch.linalg.eigvalsh(by_J[0]).sqrt().numpy().round(1))
for name, guess in (("with J", by_J[0]), ("without its third column", flat[0])):
    error = (guess - torch.cov(landed.T)).norm() / torch.cov(landed.T).norm()
    print(f"{name}: within 5 % of the samples: {bool(error < 0.05)}")

# %% [markdown]
# So $J$ is right, for a small Gaussian far away. Where does it fail? Take a round Gaussian with standard
# deviation 0.12, in one direction a little to the right, at depth 3, 1 and 0.4. An exact 2D Gaussian has 1.1 % of
# its mass outside the ellipse of three standard deviations. Before you run the next cell: guess the share at
# depth 0.4.


# %% alt="Projected samples and the three-sigma ellipse of J at depths 3, 1 and 0.4: at 0.4 the samples fan out of it"
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
        L = torch.linalg.cholesky(cov2d[0])
        in_sigmas = torch.linalg.solve(L, (landed - mean2d).T).T  # (S, 2)
        print(f"depth {z}: {100 * (in_sigmas.norm(dim=-1) > 3).float().mean():.2g} % outside three sigmas")
        panel.scatter(*in_sigmas[:1500].T, s=1, color="#0072B2")
        panel.plot(*circle.T, color="#E69F00", linewidth=2)
        panel.set(title=f"depth {z:g}", xlim=(-5, 10), ylim=(-7.5, 7.5), aspect="equal")
        panel.set_xlabel("x in standard deviations")
    plt.show()

# %% [markdown]
# **What to notice.** Far away, the samples fill the orange circle. Close by, they fan out to the right, where the
# nearer half of the ball lands, and no ellipse can follow. The library lives with it: it limits $t_x/t_z$ in $J$
# outside the image, culls what is nearer than `near`, and your cameras keep their distance.
#
# ## 3 · Many Gaussians
#
# Which of two overlapping splats do you see? Sort them by depth and let each one stop a part $\alpha_i$ of the
# light that comes through those in front:
#
# $$\alpha_i = o_i\, e^{-\sigma_i},\quad T_i = \prod_{j<i} (1-\alpha_j),\quad C = \sum_i T_i\,\alpha_i\,c_i +
# T_\text{end}\, b$$
#
# $o$ = `opacities`, $\sigma$ = `sigma` $= \tfrac12 d^\top \Sigma'^{-1} d$ at the pixel's centre, $T$ = `T`, the
# transmittance, $c$ = `colors`, $b$ = `background`. Four constants keep it stable and fast: $\Sigma'$ grows by
# `EPS2D`, so that no splat falls between two pixels; $\alpha$ stays below `MAX_ALPHA`, and counts as 0 below
# `ALPHA_MIN` = 1/255; a pixel stops before $T$ reaches `T_MIN`. Three layers of opacity 0.5 must get the weights
# 1/2, 1/4, 1/8.


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
    H, W = camera.height, camera.width
    means2d, covs2d, depths = my_project(g.means, g.covariances(), camera)
    i = depths.argsort() if in_order else torch.arange(g.num)
    ys, xs = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(-1, 2).to(g.means)  # (H W, 2)
    rgb, T_end = my_composite(pixels, means2d[i], covs2d[i], g.opacities[i], g.colors[i])
    return (rgb + T_end[:, None] * background).reshape(H, W, 3)


near = replace(blobs, scales=blobs.scales * 7).select(slice(0, 1000))
far = replace(near, means=near.means + torch.tensor([0.0, 0.05, -0.55]), colors=near.colors.flip(-1))
pair, small, white = Gaussians.cat([far, near]), camera.resize(64, 64), torch.ones(3)
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
# spherical harmonics: functions on the sphere of directions $d$ (from the camera to the splat), $K$ per channel,
#
# $$c(d) = \max\left(0, \tfrac12 + \textstyle\sum_k \text{colors}_k\,Y_k(d)\right),\qquad
# Y_0 = 0.2821,\quad Y_{1,2,3} = 0.4886\,(-d_y,\, d_z,\, -d_x)$$
#
# Put 0.8 into the red channel of $Y_3$. From the right (+x) you look along $d = (-1, 0, 0)$ and see the red
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
mine = picture_and_gradients(lambda g, b: my_render(g, view, b))
for engine in ("reference", "numba"):
    theirs = picture_and_gradients(lambda g, b: rasterize(g, view, b, engine=engine).rgb[0])
    cmp(f"{engine} picture", theirs["picture"], mine["picture"])
    cmp(f"{engine} gradients", in_one(theirs), in_one(mine), tol=1e-4)
unsorted = picture_and_gradients(lambda g, b: my_render(g, view, b, in_order=False))
print("and unsorted, the gradients agree:", bool((in_one(unsorted) - in_one(mine)).abs().max() < 1e-4))

# %% [markdown]
# ### How fast is each?
#
# Yours asks every splat at every pixel. Tiles ask only the splats whose box touches a tile of 16 × 16 pixels.
# Before you run the next cell: of all (splat, pixel) pairs, which part reaches 1/255, and so matters at all?
# Timings are of one forward and one backward pass on this machine, best of three.


# %%
def milliseconds(draw, count, size):
    """Best wall-clock time of three for one picture and its gradients."""
    g = Gaussians.random(count, generator=torch.Generator().manual_seed(SEED)).requires_grad_()
    camera, times = Cameras.orbit(1, width=size, height=size), []
    for _ in range(3):
        start = time.perf_counter()
        draw(g, camera).sum().backward()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


print(f"{'1,000 splats, 64 px':>33}{'4,000 splats, 128 px':>24}")
print(f"{'yours, dense':<14}{milliseconds(lambda g, c: my_render(g, c, white), 1000, 64):>16.1f} ms{'-':>21}")
for engine in ("reference", "numba"):
    small_ms, large_ms = (milliseconds(lambda g, c: rasterize(g, c, WHITE, engine=engine).rgb, n, size)
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
# chicken, with known cameras, and hold out 8 more that the fit never sees. It starts from 400 grey blobs inside
# the silhouettes and minimises $0.8\,|C - I|_1 + 0.2\,(1 - \text{SSIM})$, each step on another random background.
#
# Gradient descent moves Gaussians, but makes none. So every few steps the fit **densifies**: where the loss pulls
# a 2D mean hard, it clones small Gaussians, splits large ones, and drops transparent ones. Is that worth it? The
# controls: no densification; and no densification, but as many Gaussians from the start. PSNR is in dB: 10 dB
# more is a tenth of the squared error. A splat that fills less than one pixel in all 24 pictures counts as idle.
# Before you run the next two cells: which of the three wins on the held-out pictures?


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
    """Pixels that each splat fills in the training pictures, (N,): the gradient of their sum by its colour."""
    colors = scene.colors.clone().requires_grad_()
    rasterize(replace(scene, colors=colors), train).rgb[..., 0].sum().backward()
    return colors.grad[:, 0]


def run_fit(**options):
    return fit(photos, train, generator=torch.Generator().manual_seed(SEED), progress=False, **options)


grown = run_fit(config=config, snapshot_every=STEPS // 20)
few = run_fit(config=config, densify=False)
many = run_fit(config=replace(config, init=grown.gaussians.num), densify=False)

# %% tags=["main"] alt="A chicken emerges from blobs in five steps; below, its splats shrunk: few large, then many small"
# NBVAL_CHECK_OUTPUT
for name, run in (("densified", grown), ("400 all along", few), ("as many, from the start", many)):
    score, idle = scores(run.gaussians).mean(), (filled(run.gaussians) < 1).float().mean()
    print(f"{name}: held-out PSNR >= 30 dB: {bool(score >= 30)}; under 5 % idle splats: {bool(idle < 0.05)}")
kept = [grown.snapshots[i] for i in (0, 1, 3, 7, 19)]
rows = {label: [rasterize(replace(g, scales=k * g.scales), test[0], WHITE).rgb[0] for _, g in kept]
        for label, k in (("render", 1.0), ("shrunk to 0.4", 0.4))}
captions = [f"{g.num:,} splats, {scores(g)[0]:.0f} dB" for _, g in kept]
viz.compare(rows, [f"step {step}" for step, _ in kept], {"render": captions})

# %% [markdown]
# **What to notice.** The number of splats grows sixfold, and small ones gather where the detail is: head, legs,
# tail. As many splats from the start do worse, and more than 5 % of them idle: they were scattered through the
# whole body, and a splat that others hide gets no gradient to move it out.
#
# ### What does splatting save?
#
# The other way to draw such a scene is to march: sample a density $\rho$ along each ray in steps of length
# $\delta$, and composite $1 - e^{-\rho_k \delta}$ at each sample $k$, as radiance fields do. Is splatting far
# cheaper, for the same picture?
#
# Give the same Gaussians a density. On the ray $o + s\,d$ the exponent of a Gaussian is
# $\tfrac12(a s^2 - 2 b s + q)$ with $a = d^\top \Sigma^{-1} d$, $b = d^\top \Sigma^{-1} (\mu - o)$: a bell around
# $s = b/a$ = `at`, of width $1/\sqrt a$ = `width`. Let its density integrate to $-\ln(1 - \alpha)$; then, alone,
# it stops exactly what its splat stops. Held equal: Gaussians, camera, pixels, the candidates of each tile, the
# language (loops compiled by numba; processor time, summed over threads). With `samples = 0` the same function
# splats instead: whole Gaussians, nearest first. Two ways to march: with `skip`, a Gaussian touches only the
# samples that lie in its bell; without, every sample asks every Gaussian on its ray. `march` widens each Gaussian
# by what `EPS2D` means at its depth, so that all ways blur alike, and hands out the candidates.
#
# Before you run the second cell: by what factor is marching with 128 samples slower than splatting, in the same
# loop?


# %%
@numba.njit(fastmath=True)
def march_rays(rays, A, b, q, opacities, colors, start, step, samples, skip):
    """Colours on white of P unit rays (P, 3) through M Gaussians, nearest first. A (M, 3, 3), b (M, 3), q (M,)."""
    image = np.zeros((len(rays), 3))
    for p in range(len(rays)):
        (x, y, z), T = rays[p], 1.0
        density, light = np.zeros(samples), np.zeros((samples, 3))
        for i in range(len(q)):
            a = A[i, 0, 0] * x * x + A[i, 1, 1] * y * y + A[i, 2, 2] * z * z
            a += 2 * (A[i, 0, 1] * x * y + A[i, 0, 2] * x * z + A[i, 1, 2] * y * z)
            at, width = (b[i, 0] * x + b[i, 1] * y + b[i, 2] * z) / a, 1 / math.sqrt(a)
            alpha = min(MAX_ALPHA, opacities[i] * math.exp(-0.5 * (q[i] - a * at * at)))
            if alpha < ALPHA_MIN:
                continue
            if samples == 0:  # splatting: the whole Gaussian at once
                for c in range(3):
                    image[p, c] += T * alpha * colors[i, c]
                T *= 1 - alpha
                if T < T_MIN:
                    break
            reach = 3.4 * width if skip else 100.0
            first, last = max(0, int((at - reach - start) / step)), min(samples, int((at + reach - start) / step) + 1)
            for k in range(first, last):  # marching: a bit of it at each sample
                s = (start + (k + 0.5) * step - at) / width
                rho = -math.log(1 - alpha) * math.exp(-0.5 * s * s) / (width * math.sqrt(2 * math.pi))
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
def march(scene, camera, samples, skip=True, start=1.1, end=2.5, tile=16):
    """One picture (H, W, 3) on white; start, end: where the object begins and ends along a ray."""
    depths = project(scene, camera).depths[0]
    blur = EPS2D * (depths / camera.Ks[0, 0, 0]) ** 2  # in world units squared
    scene = replace(scene, scales=(scene.scales**2 + blur[:, None]).sqrt()).select(depths.argsort())
    p, rays = project(scene, camera, eps2d=0.0), camera.rays()[1][0]
    image, step = torch.empty_like(rays), (end - start) / max(samples, 1)
    A, m = torch.linalg.inv(scene.covariances().double()), (scene.means - camera.centers[0]).double()
    b = (A @ m[..., None])[..., 0]
    low, high = p.means2d[0] - p.radii[0], p.means2d[0] + p.radii[0]
    for y in range(0, camera.height, tile):
        for x in range(0, camera.width, tile):
            corner, block = torch.tensor([x, y]), (slice(y, y + tile), slice(x, x + tile))
            near = ((low < corner + tile) & (high > corner) & (p.radii[0] > 0)).all(-1)
            data = (v[near].numpy() for v in (A, b, (b * m).sum(-1), scene.opacities, scene.colors))
            out = march_rays(rays[block].reshape(-1, 3).numpy(), *data, start, step, samples, skip)
            image[block] = torch.from_numpy(out).reshape(image[block].shape)
    return image


def cpu_milliseconds(draw):
    """The picture, and the processor time it took, all threads together, best of three (after one to warm up)."""
    times = []
    for _ in range(4):
        start = time.process_time()
        image = draw()
        times.append(time.process_time() - start)
    return image.clamp(0, 1), 1000 * min(times[1:])


fitted, seat, photo = grown.gaussians.to("cpu"), test[0].to("cpu"), truth[0].cpu()
ways = {"splatting, the library's engine": lambda: rasterize(fitted, seat, WHITE).rgb[0],
        "splatting, the loop above": lambda: march(fitted, seat, 0)}
ways |= {f"marching, {n} samples": lambda n=n: march(fitted, seat, n) for n in (16, 32, 64, 128)}
ways["marching, 128, without skip"] = lambda: march(fitted, seat, 128, skip=False)
pictures = {}
for name, draw in ways.items():
    pictures[name], ms = cpu_milliseconds(draw)
    print(f"{name:<32}{ms:>8.1f} ms   {psnr(pictures[name], photo):.2f} dB to the photo")

# %% alt="Photo, splats, and marching with 16, 32 and 128 samples: with 16 the legs are lost, 128 looks like splats"
# NBVAL_CHECK_OUTPUT
splatted = pictures["splatting, the library's engine"]
for name in ("splatting, the loop above", "marching, 16 samples", "marching, 128 samples"):
    loss = psnr(splatted, photo) - psnr(pictures[name], photo)
    print(f"{name}: as good as the library's splats, within 0.25 dB: {bool(loss < 0.25)}")
names = ["splatting, the library's engine", "marching, 16 samples", "marching, 32 samples", "marching, 128 samples"]
viz.film_strip([photo, *(pictures[n] for n in names)], ["photo", "splatting", *names[1:]], cell=1.7)

# %% [markdown]
# **What to notice.** With 16 samples the legs are lost between two samples; with 128 both ways show the same
# picture equally well. From the library's splats to marching without `skip`, the price rises more than a
# hundredfold.
#
# Read that factor by its parts. In one and the same loop, marching costs several times more if each sample asks
# every Gaussian, but only about twice as much with `skip`. `skip` is knowledge that splatting brought along:
# where on the ray each Gaussian lies. A field known only by asking it, such as a network, has none. The rest is
# the engine: a splat is a small regular job, projected once, that suits vector instructions and the rows of a
# tile.

# %% [markdown]
# ## Exercises
#
# Each check draws new random inputs and compares with an independent computation. The solutions are in
# `notebooks/solutions`.
#
# ### Exercise 1 · From the back (10 minutes)
#
# Section 3 walks from front to back and carries `T` along. Write `back_to_front`, which starts from the
# background, walks to the front, and needs no `T`. Evidence: the check says "passed".


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
# ### Exercise 2 · How large is a splat? (10 minutes)
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
# ### Exercise 3 · Predict, then run (5 minutes)
#
# You double a scene in size (`scene.transform(scale=2)`) and move the camera twice as far away. The picture is
# then (a) the same, (b) sharper, because `EPS2D` counts for less, (c) darker, because the light spreads. Set
# `prediction`, then render both and compare. Evidence: a line of `cmp`, and what it means for a scene known only
# from pictures.

# %% exercise="3"
### BEGIN SOLUTION
prediction = "a"
### STUB
# prediction = None  # "a", "b" or "c"
### END SOLUTION
check(nb01.exercise_3, prediction)

# %% solution=true
scene = Gaussians.random(200, generator=torch.Generator().manual_seed(SEED))
near, far = Cameras.orbit(1, radius=1.8), Cameras.orbit(1, radius=3.6)
cmp("picture", rasterize(scene.transform(scale=2), far).rgb, rasterize(scene, near).rgb)

# %% [markdown] solution=true
# Pictures cannot tell a small near scene from a large far one. Known cameras fix the size, which is why data sets
# agree on one: objects inside the unit cube.

# %% [markdown]
# ### Exercise 4 · Derive the gradient (20 minutes)
#
# Let $L = v \cdot C$, with $v$ = `v` the gradient that arrives at the pixel. Derive
# $\partial L / \partial \alpha_j$: how does more of layer $j$ change its own light, and what does it do to the
# light $R_j$ that arrives from behind it? Then write `alpha_gradient` without autograd. Evidence: "passed", and
# one line that says which two sums you carry along. It is the line `d_alpha` in
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
# Layer j sends $T_j \alpha_j (c_j \cdot v)$, which gives $T_j (c_j \cdot v)$. All light from behind it holds one
# factor $(1 - \alpha_j)$, so its derivative is $-R_j / (1 - \alpha_j)$. Front to back you carry $T$ and $R$.

# %% [markdown]
# ### Exercise 5 · Open: how exact must the cameras be? (30 minutes)
#
# Real cameras are estimated, with errors. Disturb the azimuths of the training cameras by random angles of some
# degrees, keep the pictures, fit at 64 px, and measure the held-out PSNR. Evidence: a plot over at least four
# angles with two seeds each, and how many degrees cost you 3 dB. What do the fitted splats do to explain pictures
# that disagree?

# %% solution=true
mesh = load_mesh(mesh_path(OBJECT))
angles, quick = torch.arange(24) * 15.0, FitConfig(steps=150, init=1500)
images = torch.as_tensor(render_mesh(mesh, Cameras.orbit(24, azimuth=angles)).rgba)
unseen = Cameras.orbit(8, azimuth=torch.arange(8) * 45.0 + 22.5)
goal = torch.as_tensor(render_mesh(mesh, unseen).rgba)
goal = goal[..., :3] * goal[..., 3:] + 1 - goal[..., 3:]
for degrees in (0.0, 4.0, 16.0):
    generator = torch.Generator().manual_seed(SEED)
    cameras = Cameras.orbit(24, azimuth=angles + degrees * torch.randn(24, generator=generator))
    result = fit(images, cameras, config=quick, densify=False, generator=generator, progress=False)
    score = psnr(rasterize(result.gaussians, unseen, WHITE).rgb.clamp(0, 1), goal)
    print(f"error {degrees:.0f} degrees: held-out PSNR {score:.1f} dB")

# %% [markdown] solution=true
# One seed and a short fit, to show the measurement; your plot has more of both. Splats become blurred, or float
# in front of single cameras, where no other picture contradicts them.

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
# | marching the same Gaussians costs more for the same picture | section 5, last table |
#
# ## References
#
# - Kerbl, Kopanas, Leimkühler, Drettakis: 3D Gaussian Splatting for Real-Time Radiance Field Rendering, 2023:
#   blending eq. 3, Gaussian eq. 4, projection eq. 5, covariance eq. 6, loss eq. 7, densification section 5.
# - Zwicker, Pfister, van Baar, Gross: EWA Volume Splatting, 2001: J and projected covariance, eq. 24-31.
# - Mildenhall et al.: NeRF, 2020: marching, eq. 3. Porter, Duff: Compositing Digital Images, 1984.
# - Ye et al.: gsplat, 2024: the constants and culling tests. Sloan: Stupid Spherical Harmonics Tricks, 2008.
#
# ## Time and memory

# %%
print(time_and_memory(STARTED))
