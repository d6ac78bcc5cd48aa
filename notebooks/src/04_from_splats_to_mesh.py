# %% [markdown]
# # 04 · From splats to a mesh
#
# CPU about 90 s · GPU not needed, used where there is one · the prior was trained for some hours, its checkpoint is
# shipped
#
# <!-- colab-badge -->
#
# 60 minutes to read, two hours for the exercises. Prerequisite: notebooks 01 and 03.
#
# Editors, games and printers want triangles, not splats. In this lesson the Gaussians of a prompt, and those of a single
# picture, become a closed triangle mesh with a texture, in a GLB file that any 3D program opens. This is the second half of
# DreamGaussian.

# %% [markdown]
# ## You will be able to
#
# - **turn** Gaussians into a density, and **choose** the level at which it becomes a surface (section 1, exercise 1);
# - **extract** triangles, and **check** that they close a volume (section 2);
# - **bake** colours of views into a texture, and say which views a texel trusts (section 3, exercise 2);
# - **refine** a texture with a denoiser, and **measure** what that gains and costs (section 4);
# - **make** an object from one picture of a thing that the prior never saw, and see what was invented (section 5).
#
# ## Set-up
#
# After the imports come the knobs. The first cell goes all the way once: prompt, Gaussians, mesh, refined texture. Predict:
# which of the two steps changes the picture more, the mesh or the refinement?

# %% tags=["setup"]
# (the set-up cell is inserted here)

# %% tags=["shared"]
import time
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from scipy.spatial import cKDTree

from gsgen_lib import viz
from gsgen_lib.checks import check, cmp, nb04
from gsgen_lib.data.captioned_views import on_background
from gsgen_lib.data.meshes import Material, Mesh
from gsgen_lib.data.objects import load_object
from gsgen_lib.data.raycast import render_mesh
from gsgen_lib.doctor import time_and_memory
from gsgen_lib.mesh import (EmptyField, bake_weights, density_field, extract_mesh, grid_points, pieces_of, render_texture,
                            texture_rays)
from gsgen_lib.metrics import psnr
from gsgen_lib.pretrained import load_or_train
from gsgen_lib.raster import rasterize
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems.dream_metrics import around, caption_score, sharpness
from gsgen_lib.systems.dreamgaussian import DreamConfig, dream
from gsgen_lib.systems.dreamgaussian_sample import refined, render_mesh_at, to_mesh
from gsgen_lib.systems.score_distillation import ViewPrompts
from gsgen_lib.systems.texture_refinement import denoised

STARTED = time.perf_counter()
FAST = True
SEED = 0
STEPS = 200 if FAST else 400  # of stage 1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gen(seed=SEED):
    return torch.Generator().manual_seed(seed)


# %% tags=["main"] alt="A boat as Gaussians, as a mesh, and with a refined texture, from eight sides"
prior = load_or_train("prior", device=DEVICE)
scorer = load_or_train("prompt_scorer", device=DEVICE)
caption = "a blue boat"
scene = dream(prior, caption, DreamConfig(steps=STEPS), generator=gen(), progress=False).gaussians.to("cpu")
baked = to_mesh(scene)
final = refined(prior, caption, baked, generator=gen(), progress=False)


def look(gaussians, cameras):
    """Renders (V, H, W, 3) on white."""
    return rasterize(gaussians, cameras, (1.0, 1.0, 1.0)).rgb.clamp(0, 1)


ring = around(8)
stages = {"Gaussians": look(scene, ring), "mesh": render_mesh_at(baked, ring), "refined": render_mesh_at(final, ring)}
for name, a, b in (("the mesh", "Gaussians", "mesh"), ("the refinement", "mesh", "refined")):
    print(f"{name} changes a colour by {(stages[b] - stages[a]).abs().mean():.3f} on average")
print(f"{scene.num} Gaussians became {len(final.mesh.faces)} triangles")
SIDES = ["0°, front", "45°", "90°, side", "135°", "180°, back", "225°", "270°, side", "315°"]
viz.compare(stages, SIDES, cell=1.0)

# %% [markdown]
# **What to notice.** By the size of the change neither wins, about 0.02 each where colours go from 0 to 1. But they change
# different things. The mesh, whose texture was copied from the Gaussians, has hard edges where they have a haze, and keeps their
# colours. The refinement redraws mast, sails and hull with more contrast, and adds speckles that no boat has. Form is decided
# before: bow and stern of this boat are vague, and stay so.
#
# ## 1 · A density, and a level
#
# Where is the surface of a heap of Gaussians? Each has opacity $o_i$ = `opacities`, mean $\mu_i$ = `means` and covariance
# $\Sigma_i$. Add them up:
#
# $$d(p) = \sum_i o_i \exp\bigl(-\tfrac12 (p-\mu_i)^\top \Sigma_i^{-1} (p-\mu_i)\bigr)$$
#
# and call inside what has $d(p) >$ `level`. Written down as it stands:


# %%
# NBVAL_CHECK_OUTPUT
def my_density(points, gaussians):
    """points (P, 3), N Gaussians -> (P,)."""
    away = points[:, None] - gaussians.means  # (P, N, 3)
    inverse = torch.linalg.inv(gaussians.covariances())  # (N, 3, 3)
    exponent = torch.einsum("pni,nij,pnj->pn", away, inverse, away)
    return (gaussians.opacities * torch.exp(-0.5 * exponent)).sum(1)


few = scene.select(scene.opacities > 0.005)  # the library leaves out fainter ones
few = few.select(torch.arange(few.num) < 200)
axis = grid_points(12)
points = torch.cartesian_prod(axis, axis, axis)  # (1728, 3)
cmp("density", my_density(points, few).reshape(12, 12, 12), density_field(few, 12), tol=1e-3)

# %% [markdown]
# On a grid of 96³ points and with the thousand Gaussians printed above that would be 0.9 billion exponents. The
# library goes through blocks of 16³, each with only the Gaussians that reach it. Which level? Look at a slice through the
# middle. Predict: does a higher level make the sail thicker or thinner?

# %% alt="Two slices through the density with contours at three levels"
field = density_field(scene, 96)  # (96, 96, 96), axes x, y, z
levels = (0.3, 0.7, 1.5)
ticks = grid_points(96)
with viz.style():
    figure, panels = plt.subplots(1, 2, figsize=(7, 3.2))
    titles = ("slice y = 0, from above", "slice z = 0, from the front")
    for panel, cut, names, title in zip(panels, (field[:, 48], field[:, :, 48]), ("xz", "xy"), titles, strict=True):
        picture = panel.imshow(cut.T.clamp(max=5), origin="lower", extent=[-0.55, 0.55] * 2, cmap="cividis")
        panel.contour(ticks, ticks, cut.T, levels, colors=["#FFFFFF", "#D55E00", "#000000"], linewidths=1)
        for level, tone in zip(levels, ("#FFFFFF", "#D55E00", "#000000"), strict=True):
            panel.plot([], [], color=tone, label=f"level {level}")
        panel.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[], title=title)
    panels[0].legend(loc="upper left", fontsize=7, frameon=True, facecolor="#999999", labelcolor="#000000")
    figure.colorbar(picture, ax=panels, shrink=0.8, label="density, cut at 5")
    plt.show()
volumes = [(field > level).float().mean().item() for level in levels]
print("a higher level encloses less:", volumes == sorted(volumes, reverse=True))

# %% [markdown]
# **What to notice.** In the hull the density is far above all three levels, so the contours run close together there. The sails
# are thin: at 1.5 they are lace, and at 0.7 they have a few holes.
#
# ## 2 · Triangles
#
# Marching cubes visits each cell of eight grid points. Where an edge has one end inside and one outside, the surface crosses
# it, at the place where a straight line between the two values meets the level:


# %%
# NBVAL_CHECK_OUTPUT
def my_crossing(a, b, value_a, value_b, level):
    """Points a, b (E, 3), their densities (E,) -> where the density is `level`, (E, 3)."""
    share = (level - value_a) / (value_b - value_a)
    return a + share[:, None] * (b - a)


vertices, faces = extract_mesh(field, 0.7, max_faces=10**9)
inside = field > 0.7
i, j, k = (inside[:-1] & ~inside[1:]).nonzero().T  # edges along x that leave the object
a, b = (torch.stack([ticks[i + step], ticks[j], ticks[k]], 1) for step in (0, 1))
mine = my_crossing(a, b, field[i, j, k], field[i + 1, j, k], 0.7)
apart = cKDTree(vertices).query(mine)[0]  # (E,) distances to the nearest vertex
print(f"more than 90 % of my crossings are vertices of the mesh: {(apart < 1e-5).mean() > 0.9}")

# %% [markdown]
# The few that are missing lay on walls of hollows and on specks, which `extract_mesh` drops. Is what is left a closed surface?
# In a closed one each edge belongs to exactly two triangles, once in each direction. Predict which of the three levels, if any,
# gives a mesh that is not closed, and which has holes through it.

# %%
# NBVAL_CHECK_OUTPUT
def closed(faces):
    """Whether every directed edge has its opposite, once."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, back = {tuple(e) for e in edges.tolist()}, {tuple(e[::-1]) for e in edges.tolist()}
    return there == back and len(there) == len(edges)


def handles(vertices, faces):
    """Holes through a closed surface, from V - E + F = 2 pieces - 2 handles (Euler)."""
    pieces = pieces_of(vertices, faces).max() + 1
    return pieces - (len(vertices) - 3 * len(faces) // 2 + len(faces)) // 2


grey, shapes, holes = Material(color=(0.9, 0.9, 0.9, 1.0)), {}, {}
for level in levels:
    shape = extract_mesh(field, level, max_faces=10**9)
    image = torch.from_numpy(render_mesh(Mesh(*shape, materials=[grey]), around(4, 128), 3).rgba)  # 3 x 3 rays a pixel
    holes[level] = handles(*shape)
    shapes[f"level {level}\n{holes[level]} holes"] = on_background(image, torch.ones(4, 3))
    print(f"level {level}: closed {closed(shape[1])}")
print("more holes at 1.5 than at 0.3:", holes[1.5] > holes[0.3])

# %% alt="The mesh at three levels, lit from the camera, from two sides"
viz.compare(shapes, SIDES[::2], cell=1.7)

# %% [markdown]
# **What to notice.** All three are closed, as marching cubes promises. A sphere has 0 holes. The boat has few, if any, at 0.3
# and more above; at 1.5 sails and mast fall apart, and some holes become gaps. A low level is not free: it wraps everything, two
# sails too, in one thick skin. DreamGaussian takes 1; our few Gaussians get 0.7.
#
# The failure on purpose: a scene whose Gaussians are all thin as fog. The density never reaches the level, and there is no
# surface. The library says so instead of returning nothing:

# %%
# NBVAL_CHECK_OUTPUT
from dataclasses import replace  # noqa: E402

try:
    to_mesh(replace(scene, opacities=scene.opacities * 0.01))
except EmptyField as error:
    print("EmptyField:", str(error).split(":")[-1].strip())

# %% [markdown]
# ## 3 · A texture
#
# A texture is a flat picture; each triangle has a place in it, its corners' $(u, v)$ in $[0, 1]^2$. `unwrap` cuts the surface
# into charts that lie flat (xatlas does that). Which colour belongs in a texel? The mean of what 26 cameras see at its point of
# the surface (8 around, 8 from above, 8 from below, and the two poles), weighted by how squarely they see it. $\cos$ is that of
# the angle between the normal and the ray:
#
# $$w = \cos^2 \text{ where the point is visible and } \cos > \tfrac12,\quad \text{else } 0$$


# %%
# NBVAL_CHECK_OUTPUT
def my_bake_weights(cosine, visible):
    return torch.where(visible & (cosine > 0.5), cosine**2, torch.zeros_like(cosine))


cosine = 2 * torch.rand(26, 50, generator=gen()) - 1
visible = torch.rand(26, 50, generator=gen(1)) < 0.5
cmp("bake weights", my_bake_weights(cosine, visible), bake_weights(cosine, visible))

# %% [markdown]
# Predict: seen flat, will you recognise the boat in its texture?

# %% alt="The baked texture, the charts as outlines, and the refined texture"
with viz.style():
    figure, panels = plt.subplots(1, 3, figsize=(9, 3))
    panels[0].imshow(baked.texture)
    panels[1].imshow(torch.ones_like(baked.texture))
    corners = baked.mesh.uv[:, [0, 1, 2, 0]] * 256  # (F, 4, 2), closed outlines
    panels[1].plot(*np.concatenate([corners, np.full((len(corners), 1, 2), np.nan)], 1).reshape(-1, 2).T * [[1], [-1]]
                   + [[0], [256]], color="#0072B2", linewidth=0.15)
    panels[2].imshow(final.texture)
    for panel, name in zip(panels, ("baked", "triangles in the texture", "refined"), strict=True):
        panel.set(title=name)
        panel.axis("off")
    plt.show()

# %% [markdown]
# **What to notice.** Hardly: the surface lies in some hundred charts, cut where it bends. Between charts, texels that no view
# painted take the nearest colour, so that bilinear lookups at a border find no black. Refined, the charts show strokes and
# speckles.
#
# ## 4 · Sharper
#
# The texture is as soft as the Gaussians were. A denoiser can do better in one picture than distillation can in the mean over
# thousands: noise the render a little, denoise it in a few steps, and it looks like a picture again (SDEdit). Make *that* the
# target, in pixels. The shape stays; only texels move. Where a ray meets the mesh is fixed, so each pixel is a fixed mean of
# some texels, and of the background: the mean of two textures renders as the mean of their two pictures (an *affine* function).
# Optimising it is easy.

# %%
# NBVAL_CHECK_OUTPUT
cameras = around(4)
rays = texture_rays(baked.mesh, cameras, 3)  # 3 x 3 a pixel
black, white = torch.zeros(3), torch.ones(3)
a, b = torch.rand(2, 256, 256, 3, generator=gen())
mixed = render_texture(0.3 * a + 0.7 * b, rays, black)[0]  # [1] is alpha
cmp("affine", mixed, 0.3 * render_texture(a, rays, black)[0] + 0.7 * render_texture(b, rays, black)[0])
texture = baked.texture.clone().requires_grad_()
render_texture(texture, rays, white)[0].sum().backward()
moved = (texture.grad.abs().sum(-1) > 0).float().mean().item()
print("four views from the side move some texels, and not all:", 0.2 < moved < 0.8)

# %% [markdown]
# What to aim at? DreamGaussian takes the denoised picture itself. Ours went through a small autoencoder, which alters any
# picture. `refined` takes the render *plus what denoising changed*, where both sides of the difference went through the
# autoencoder:
#
# $$\text{target} = x + D(z_0) - D(E(x))$$
#
# with $E$ = `encode_image`, $D$ = `decode`, $z_0$ the denoised latents. **Sharpness** in this lesson is a thousand times the
# variance of the Laplacian of the grey picture, as in notebook 03. Predict which of the two targets is sharper.

# %%
# NBVAL_CHECK_OUTPUT
with torch.no_grad():
    x = render_texture(baked.texture, rays, white)[0].to(DEVICE)
    text = ViewPrompts(prior, caption)([90.0 * n for n in range(4)], [15.0] * 4)
    plain = denoised(prior, x, text, start=350, steps=5, guidance_scale=3.0, generator=gen())
    blurred = prior.decode(prior.encode_image(x))
    target = (x + plain - blurred).clamp(0, 1)
rows = {"render x": x, "D(E(x))": blurred, "denoised D(z0)": plain, "x + D(z0) - D(E(x))": target}
sharp = {name: 1000 * sharpness(y).mean().item() for name, y in rows.items()}
print("the target with the difference is the sharper one:", sharp["x + D(z0) - D(E(x))"] > sharp["denoised D(z0)"])

# %% alt="Renders of the baked mesh, the denoised pictures, and the two targets, from four sides"
viz.compare({f"{name}\nsharpness {s:.1f}": rows[name].cpu() for name, s in sharp.items()}, SIDES[::2], cell=1.4)

# %% [markdown]
# **What to notice.** The second row is the render after the autoencoder alone, without any noise: flatter and paler areas, and
# edges that the render does not have. The denoised picture has clean sails and a straight mast, the same pale colours, and a
# hull of another shape that the mesh cannot follow. Adding only the difference keeps the colours of the render, and is the
# sharpest. Each of the four views was denoised alone: mast and sails do not agree between them, and such disagreements end as
# speckles in the texture.
#
# `refined` draws 16 such targets from new directions, moves the texture towards them for 30 steps of Adam, and does so again with
# less noise. What did it gain over the whole object, and does the judge still recognise the caption?

# %% alt="Sharpness and cosine to the caption, before and after the refinement"
# NBVAL_CHECK_OUTPUT
ring = around(24)
marks = {}
for name, mesh in (("baked", baked), ("refined", final)):
    y = render_mesh_at(mesh, ring)
    marks[name] = 1000 * sharpness(y).mean().item(), caption_score(scorer, y.to(DEVICE), caption)
with viz.style():
    figure, panels = plt.subplots(1, 2, figsize=(6, 1.6), sharey=True, layout="constrained")
    for k, (panel, what) in enumerate(zip(panels, ("sharpness", "cosine to the caption"), strict=True)):
        panel.barh(list(marks), [m[k] for m in marks.values()], color=["#999999", "#0072B2"])
        panel.set(xlabel=what)
    plt.show()
print("sharper by 20 %:", marks["refined"][0] > 1.2 * marks["baked"][0])
print("the caption fits no worse:", marks["refined"][1] > marks["baked"][1] - 0.01)

# %% [markdown]
# **What to notice.** A good half more sharpness, and a better cosine. Part of the sharpness is detail, mast and sails, part of
# it is the speckle that you have seen: the variance of a Laplacian cannot tell the two apart. `gsgen bench sds` measures both
# over 24 prompts.
#
# ## 5 · From one picture
#
# The same system takes a picture with a mask; a photograph that was cut out will do. The front view is compared with it directly,
# in colour and in outline; the prior invents the rest. Here it is the render of a modelled chair, no toy, that the prior never
# saw. Predict: how will its back differ from the true one?

# %% alt="A chair: the picture given, the Gaussians made from it, and the truth, from eight sides"
# NBVAL_CHECK_OUTPUT
real = load_object("chair_03")
print(real.meta["caption"], "·", real.meta["licence"])
picture = torch.from_numpy(real.images[0]).float() / 255  # (64, 64, 4), azimuth 0, elevation 15
from_picture = dream(prior, real.meta["caption"], DreamConfig(steps=STEPS), picture=picture, generator=gen(),
                     progress=False).gaussians.to("cpu")
turns, heights = torch.tensor(real.meta["azimuth"][:8]), torch.tensor(real.meta["elevation"][:8])
views = Cameras.orbit(8, azimuth=turns.tolist(), elevation=heights.tolist(), width=64, height=64)
truth = on_background(torch.from_numpy(real.images[:8]), torch.ones(8, 3))
guessed = look(from_picture, views)
each = [psnr(g, t).item() for g, t in zip(guessed, truth, strict=True)]
print(f"the view that was given is met better than the others: {each[0] > max(each[1:])}")
viz.compare({"from one picture": guessed, "the true chair": truth},
            [f"{int(t)}°: {p:.0f} dB" for t, p in zip(turns, each, strict=True)], cell=1.1)

# %% [markdown]
# **What to notice.** From the front it is the chair, at 22 dB. The rest is invented, and the invention is a relative of section
# 5 of notebook 03: a *second back* at the other edge of the seat. The picture was painted onto one board, and the prior set
# another one behind it. From behind (180°) it passes for the chair, only darker; the side views show the
# extra back at once.
#
# ## 6 · A file for others
#
# GLB holds mesh and texture in one file. `trimesh` reads it back; so do Blender, game engines, and the 3D viewer of your
# system. The texture holds the light that the prior painted: shading is in its colours. A viewer that adds lamps
# of its own shades it twice, so choose "unlit" or "flat" there, where it can.

# %%
import trimesh  # noqa: E402

folder = Path("outputs")
folder.mkdir(exist_ok=True)
final.save(folder / "boat.glb")
to_mesh(from_picture).save(folder / "chair.glb")
for name in ("boat", "chair"):
    back = trimesh.load(folder / f"{name}.glb", force="mesh")
    print(f"{name}: read back with a texture of {back.visual.material.baseColorTexture.size}")
print("the file to download:", (folder / "boat.glb").as_posix())

# %% [markdown]
# Play: the level of the surface, and the number of triangles (`max_faces`; in section 2 it was switched off by 10**9). The strips
# are its static twins. What breaks first, at which end?

# %% alt="The boat's mesh with 10,000, 1,000, 300 and 100 triangles, and at levels 0.1, 0.7, 1.5 and 3, from two sides"
level_slider = widgets.FloatSlider(0.7, min=0.1, max=3, description="level", continuous_update=False)
most_slider = widgets.SelectionSlider(options=[100, 300, 1000, 3000, 10000], value=3000, description="triangles",
                                      continuous_update=False)
screen = widgets.Output()


def shape_with(level, most):
    """Renders (2, H, W, 3) of the shape with colours, front and left."""
    return render_mesh_at(to_mesh(scene, level=level, max_faces=most), around(4))[[0, 3]]


def redraw(change=None):
    pictures = shape_with(level_slider.value, most_slider.value)
    with screen:
        screen.clear_output(wait=True)
        display(viz.image_grid(pictures, columns=2, alt=f"level {level_slider.value}, {most_slider.value} triangles"))


for control in (level_slider, most_slider):
    control.observe(redraw, "value")
counts = (10000, 1000, 300, 100)
for twins in ({f"{n:,} triangles": shape_with(0.7, n) for n in counts},
              {f"level {level}": shape_with(level, 10000) for level in (0.1, 0.7, 1.5, 3.0)}):
    pairs = torch.stack(list(twins.values()), 1)  # (2, 4, H, W, 3)
    display(viz.compare({"front": pairs[0], "side": pairs[1]}, list(twins), cell=1.5))
display(widgets.VBox([level_slider, most_slider, screen]))

# %% [markdown]
# **What to notice.** At 1,000 triangles hardly anything is missing from these pictures: the texture carries what you see. At 100
# the mast is a thread, torn from the sail. A triangle is missed where it makes the outline, and hardly anywhere else. A low level
# thickens everything; a high one eats mast and sails first, since they are thin.
#
# ## Exercises
#
# The checks of 1, 2 and 4 draw new random inputs and compare with an independent computation. The solutions are in
# `notebooks/solutions`.
#
# ### Exercise 1 · Density and slope (25 minutes)
#
# The gradient of the density points to where it grows fastest, into the object; turned around it is the outward normal of the
# surface. Write the density *and* its gradient at points, for spherical Gaussians of standard deviation `scales` (N,). No
# autograd. Evidence: "passed".


# %% exercise="1"
# NBVAL_CHECK_OUTPUT
def density_and_gradient(points, means, scales, opacities):
    """points (P, 3); means (N, 3), scales (N,), opacities (N,) -> density (P,), gradient (P, 3)."""
    ### BEGIN SOLUTION
    away = points[:, None] - means  # (P, N, 3)
    part = opacities * torch.exp(-0.5 * away.square().sum(-1) / scales**2)  # (P, N)
    return part.sum(1), -(part[..., None] * away / scales[:, None] ** 2).sum(1)
    ### END SOLUTION


check(nb04.exercise_1, density_and_gradient)

# %% [markdown]
# ### Exercise 2 · Bake a texel (20 minutes)
#
# V views see T texels. Return each texel's colour, the mean of the views weighted by $w$ of section 3, and which texels no view
# may paint (their colour is 0). Evidence: "passed".


# %% exercise="2"
def baked_colours(colours, cosine, visible):
    """colours (V, T, 3), cosine (V, T), visible (V, T) bool -> colours (T, 3), unpainted (T,) bool."""
    ### BEGIN SOLUTION
    w = torch.where(visible & (cosine > 0.5), cosine**2, torch.zeros_like(cosine))[..., None]  # (V, T, 1)
    total = w.sum(0)
    return (w * colours).sum(0) / total.clamp_min(1e-12), total[:, 0] == 0
    ### END SOLUTION


check(nb04.exercise_2, baked_colours)

# %% [markdown]
# ### Exercise 3 · Predict, then run (10 minutes)
#
# You double every opacity of the scene (beyond 1, the density does not mind) and double the level too. The surface (a) grows,
# (b) shrinks, (c) stays where it was. Set `prediction`; then compute `(density_field(scene, 96) > 0.7).float().mean()`, and the
# same with `> 1.4` for `replace(scene, opacities=2 * scene.opacities)`. Evidence: the two shares (up to faint Gaussians that
# the library leaves out).

# %% exercise="3"
### BEGIN SOLUTION
prediction = "c"
from dataclasses import replace  # noqa: E402

from gsgen_lib.systems.dreamgaussian import ball  # noqa: E402

once = ball(500, 0.4, gen())  # any scene will do
twice = replace(once, opacities=2 * once.opacities)
shares = [(density_field(some, 96) > level).float().mean().item() for some, level in ((once, 0.7), (twice, 1.4))]
print(f"inside: {shares[0]:.4f}, doubled: {shares[1]:.4f}")
### STUB
# prediction = None  # "a", "b" or "c"
### END SOLUTION
check(nb04.exercise_3, prediction)

# %% [markdown] solution=true
# The density is linear in the opacities, so $2d > 2\,$`level` says the same as $d >$ `level`: (c), up to the few Gaussians of
# opacity between 0.0025 and 0.005, which the library leaves out before and not after.

# %% [markdown]
# ### Exercise 4 · Debug (20 minutes)
#
# This mesh is about half a cell too far along the line, and its walls are staircases. `crossing_1d` should find where densities
# `values` (R,) at the places `ticks` (R,) cross the level, along a line, by straight interpolation. Remove the line with `raise`
# and the `#` in front of the two below it, and mend those. Evidence: "passed".


# %% exercise="4"
def crossing_1d(ticks, values, level):
    """Places (K,), ascending, where the density crosses the level."""
    inside = values > level
    where = (inside[1:] != inside[:-1]).nonzero()[:, 0]  # between where and where + 1
    ### BEGIN SOLUTION
    share = (level - values[where]) / (values[where + 1] - values[where])
    return ticks[where] + share * (ticks[where + 1] - ticks[where])
    ### STUB
    # raise NotImplementedError("exercise 4: remove this line and the # in front of the next two, and mend them")
    # # share = values[where] / level
    # # return ticks[where] + share.round() * (ticks[where + 1] - ticks[where])
    ### END SOLUTION


check(nb04.exercise_4, crossing_1d)

# %% [markdown]
# ### Exercise 5 · Open: what does the refinement invent? (40 minutes)
#
# `strength` is the share of the schedule that is noised, for the first and the last target. Refine the chair of section 5 with
# `refined(prior, real.meta["caption"], to_mesh(from_picture), RefineConfig(strength=...), generator=gen(), progress=False)`
# (from `gsgen_lib.systems.texture_refinement`) at (0.2, 0.1), (0.35, 0.2), the default, (0.5, 0.25) and (0.8, 0.4);
# beside them the mesh that is not refined. Render each with `render_mesh_at(mesh, views)`, and compare with `truth`: `psnr`,
# `lpips(pictures, truth)` from `gsgen_lib.perceptual` (how different they look to a network; lower is better), and `sharpness`.
# Evidence: a table, and one sentence: where does it stop describing the object, and begin to invent? Half a minute in all.
#
# ## Summary
#
# | claim | where you saw it |
# |---|---|
# | the surface is a level of a sum of Gaussians; the level decides on holes | sections 1 and 2 |
# | a mesh can be checked: closed, number of holes | section 2 |
# | a texel trusts views that see it squarely | section 3 |
# | a render is affine in the texture | section 4 |
# | denoised targets sharpen | section 4; `gsgen bench sds` over 24 prompts |
# | one picture fixes one side | section 5, against the true object |
#
# ## References
#
# - Tang et al.: DreamGaussian, 2023: section 3.2 (mesh) and 3.3 (texture).
# - Lorensen, Cline: Marching Cubes, 1987. Young: xatlas.
# - Meng et al.: SDEdit, 2021: noise, then denoise. Khronos: glTF 2.0 (GLB).
#
# ## Time and memory

# %%
print(time_and_memory(STARTED))
