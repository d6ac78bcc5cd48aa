# %% [markdown]
# # 00 · Start here
#
# 45 minutes to read, an hour for the exercises · to run: CPU about 10 s on two cores, and some 12 s more the first time,
# to compile · GPU not timed yet · nothing is trained
#
# <!-- colab-badge -->
#
# You see where the course leads, check your machine, and turn points on the surface of a real object into your first
# Gaussian splats: soft coloured ellipsoids that a **rasterizer** draws, or splats, onto a picture.

# %% [markdown]
# ## You will be able to
#
# - **say** what each lesson takes in and gives out, and how long its method needs per object;
# - **check** whether your machine can run the course;
# - **build** a scene of Gaussians from surface points, in ten lines;
# - **place** a camera by its angles, and **score** its picture against controls;
# - **export** the scene to a file that other viewers read.
#
# ## Set-up
#
# On your own machine the next cell only finds the library; on Colab it installs the course. Then come the imports and
# the knobs: numbers for you to change. The comment `# NBVAL_CHECK_OUTPUT` tells the course's tests to compare a cell's
# output; you can ignore it.

# %% tags=["setup"]
# (the set-up cell is inserted here)

# %% tags=["shared"]
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from IPython.display import HTML, display

from gsgen_lib import Cameras, Gaussians, load_ply, rasterize, save_ply, viz
from gsgen_lib.checks import check, cmp, nb00
from gsgen_lib.data.meshes import load_mesh
from gsgen_lib.data.objects import load_object, mesh_path
from gsgen_lib.data.raycast import render_mesh, sample_surface
from gsgen_lib.doctor import doctor, time_and_memory
from gsgen_lib.metrics import psnr
from gsgen_lib.scene.gaussians import quat_to_rotmat
from gsgen_lib.viz.course_map import LESSONS, course_map, written

STARTED = time.perf_counter()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 0
OBJECT = "biplane"  # one that ships with its mesh: try "teddy_bear"
SHELF = ["biplane", "teddy_bear", "cat", "toy_train"]
SHELF += ["rocking_horse", "motorcycle", "birthday_cake", "dog_house"]
LARGE = 192  # pixels of the large pictures
OUT = Path("outputs")  # where this notebook writes

# %% tags=["main"] alt="Eight real objects, among them a biplane, a cat and a dog house, each seen from the front, the right side and behind"
shelf = [load_object(name) for name in SHELF]
pictures = [obj.images[view] for view in (0, 2, 4) for obj in shelf]  # azimuth 0, 90 and 180 degrees
viz.image_grid(pictures, columns=len(SHELF), alt="eight real objects from three sides: " + ", ".join(SHELF))

# %% [markdown]
# **What to notice.** Eight of the course's real objects, each from the front, the right and behind. The cat's front does
# not show the large black patches on its back: whoever makes 3D from one picture must invent the rest.
#
# ## The map
#
# A picture generator learns from billions of pictures. Nobody has billions of 3D objects. How then does a caption or a
# photo become 3D? Three answers, one output, Gaussians: **optimise** them until a picture model is content, **predict**
# them in one pass of a network, or **sample** them from a learned distribution. Which is slowest, and by what factor? The
# map has technical words; you need none of them yet.

# %% tags=["main"] alt="Map of the course: thirteen lessons with what goes in and what comes out, and the time per object that papers report"
display(course_map())
here = written()
print("in this repository today:", ", ".join(here[n] for n in sorted(here)))
print("to come:", ", ".join(lesson.number for lesson in LESSONS if lesson.number not in here) or "nothing")

# %% [markdown]
# **What to notice.** Filled numbers are lessons on your disk, hollow ones are planned. From minutes to tenths of a second
# the ladder spans three powers of ten; each dot is what its paper reports.
#
# ## How to use a notebook
#
# **Predict** before you run: most pictures come after a question. **Notice** what the text then says, and disagree if you
# can.
#
# Can your machine run the course? `doctor` looks.

# %%
exit_code = doctor()

# %% [markdown]
# ## A real object
#
# What must you know about an object to draw it from anywhere? The course stores 24 small pictures with their cameras, and
# 2,048 points on the surface with colours and normals. Enough? You will score them; exercise 5 takes four times as many.
#
# Objects fit into the **unit box** $[-0.5, 0.5]^3$, y up, front towards $+z$. `Cameras.orbit` places cameras around them:
# **azimuth** is the angle around the y axis, 0 in front and growing towards $+x$; **elevation** is the angle above the
# horizon. Pictures have **straight alpha**: a fourth channel holds opacity, and colours are not multiplied by it.


# %% tags=["shared"]
def on_white(rgba):
    """Straight alpha (..., 4) in [0, 1] -> RGB (..., 3) on white."""
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def cloud(obj):
    """Surface points of an object as tensors: points, normals, colors, (N, 3) each."""
    return [torch.tensor(x, device=DEVICE) for x in (obj.points, obj.normals, obj.colors)]


obj = load_object(OBJECT)
true = on_white(torch.tensor(obj.images, device=DEVICE) / 255)  # (24, 64, 64, 3)
cameras = obj.cameras.to(DEVICE)
points, normals, colors = cloud(obj)

# %% alt="The biplane in all its 24 stored pictures: eight around it, sixteen from many heights"
print(f"{obj.meta['caption']}; made by {obj.meta['creator']}, {obj.meta['licence']}")
viz.image_grid(true, columns=12, cell=0.7, alt=f"{obj.meta['caption']} in its 24 stored pictures")

# %%
# NBVAL_CHECK_OUTPUT
print("pictures", tuple(true.shape), " points", tuple(points.shape), " normals", tuple(normals.shape))
print("inside the unit box:", bool(points.abs().max() <= 0.5))
print("normals have length 1:", bool((normals.norm(dim=-1) - 1).abs().max() < 1e-5))

# %% [markdown]
# **What to notice.** Eight pictures go around the object, front first; the others look from many heights.
# At 64 pixels the wires between the wings are thinner than a pixel.
#
# ## From points to Gaussians
#
# A Gaussian is a soft ellipsoid: centre `means` $\mu$, turned by `quats` $q$, standard deviations `scales` $s$ along
# its three axes, `opacities` $o$, `colors` $c$. A quaternion $q = (w, x, y, z)$ is a turn by $\varphi$ about a unit axis:
# $w = \cos\frac\varphi2$ and $(x, y, z) = \sin\frac\varphi2 \cdot \text{axis}$. Each surface point becomes one Gaussian:
#
# - $\mu$ is the point, $c$ its colour, $o = 0.9$;
# - $s = r d\,(1, 1, 0.1)$: a flat disc. $d$ = `spacing`, the mean distance to the three nearest points; $r$ = `radius`;
# - $q$ turns the z axis onto the normal $n$. The quaternion of *twice* that turn is $(n_z, -n_y, n_x, 0)$; half-way between
#   it and no turn, $(1, 0, 0, 0)$, lies $q \propto (1 + n_z,\ -n_y,\ n_x,\ 0)$.
#
# For which normal is this zero? A disc has no front, so the cell first turns every normal to the side of $+z$.


# %% tags=["shared"]
def splats(points, normals, colors, radius=0.5, flat=0.1, opacity=0.9):
    """One soft disc per surface point. points, normals, colors: (N, 3) each -> Gaussians."""
    distance = torch.cdist(points, points).topk(4, largest=False).values  # (N, 4), itself first
    spacing = distance[:, 1:].mean(-1)  # (N,)
    scales = radius * spacing[:, None] * torch.tensor([1.0, 1.0, flat]).to(points)  # (N, 3)
    normals = torch.where(normals[:, 2:] < 0, -normals, normals)
    nx, ny, nz = normals.unbind(-1)
    quats = torch.stack([1 + nz, -ny, nx, torch.zeros_like(nz)], -1)  # (N, 4), w x y z
    return Gaussians(points, quats, scales, torch.full_like(nz, opacity), colors)


def draw(scene, cameras, **options):
    """What the cameras see, on white: (V, H, W, 3) in [0, 1]."""
    return rasterize(scene, cameras, background=(1.0, 1.0, 1.0), **options).rgb.clamp(0, 1)


scene = splats(points, normals, colors)

# %%
# NBVAL_CHECK_OUTPUT
# Does each disc's third axis lie along its normal? Ask the library's rotation matrix.
third_axis = quat_to_rotmat(scene.quats)[..., 2]  # (N, 3, 3) -> (N, 3)
cmp("disc axis", (third_axis * normals).sum(-1).abs(), torch.ones(len(points)))
print(f"{scene.num} Gaussians, {3 + 4 + 3 + 1 + 3} numbers each")
flatness = scene.scales[:, 2] / scene.scales[:, 0]
print("thickness is a tenth of the width:", bool((flatness - 0.1).abs().max() < 1e-6))

# %% [markdown]
# Now draw the 2,048 discs. Predict: where will the error be largest, on the flat wings, along the outline, or at the wires?

# %% alt="Eight true pictures of the biplane, the same views drawn from your splats, and the error, bright along the outline"
ring = draw(scene, cameras[:8])
scores = [f"{value:.1f} dB" for value in psnr(ring, true[:8], reduction="none").tolist()]
viz.compare({"true": true[:8], "splats": ring, "error (0 to 1)": (ring - true[:8]).abs().mean(-1)},
            columns=[f"{45 * i}°" for i in range(8)], captions={"splats": scores}, cell=1.1,
            alt="true pictures, your splats, and their absolute difference, from eight sides")

# %% [markdown]
# **What to notice.** Body, wings and wheels are there from all sides, although no picture was used. The error sits on the
# outline, where soft discs hang over the edge, and at the wires, which became grey fog.
#
# ## How good is it?
#
# The course scores with $\mathrm{PSNR} = -10 \log_{10} \mathrm{mean}\,(p - t)^2$, $p$ = the picture, $t$ = `true`: per
# picture, then averaged. What would a *wrong* answer score? Order before you run: balls instead of discs, colours
# shuffled between points, each azimuth's sign turned, an empty picture.

# %%
# NBVAL_CHECK_OUTPUT
shuffle = torch.randperm(len(points), generator=torch.Generator().manual_seed(SEED)).to(DEVICE)
angles = obj.meta["azimuth"], obj.meta["elevation"]
mirrored = Cameras.orbit(24, azimuth=[-a for a in angles[0]], elevation=angles[1]).to(DEVICE)
pictures = {
    "discs": draw(scene, cameras),
    "balls": draw(splats(points, normals, colors, flat=1.0), cameras),
    "colours shuffled": draw(splats(points, normals, colors[shuffle]), cameras),
    "azimuth sign wrong": draw(scene, mirrored),
    "nothing": torch.ones_like(true),
}
score = {name: psnr(picture, true).item() for name, picture in pictures.items()}
for name, value in score.items():
    print(f"{name:<20}{value:3.0f} dB")
print("discs reach 20 dB:", score["discs"] >= 20)
best_wrong = max(value for name, value in score.items() if name != "discs")
print("every wrong answer is at least 1 dB worse:", score["discs"] - best_wrong >= 1)
mine = -10 * (pictures["discs"] - true).square().mean(dim=(1, 2, 3)).log10().mean()
print("the formula above gives the library's score:", abs(mine.item() - score["discs"]) < 1e-3)

# %% [markdown]
# Shuffled colours keep the outline and lose only 2 or 3 dB; a turned sign loses the outline too, and twice as much. Even
# an empty picture scores, since most of each is white: quote a PSNR only beside its controls.
#
# ## Turn it
#
# In Jupyter the next cell has sliders and draws live; elsewhere you see six still views. Predict: at azimuth 90°,
# does the nose, which faces $+z$, point left or right?

# %% alt="Six views of the splat biplane from all around"
viz.OrbitViewer(scene.to("cpu"), azimuth=30, elevation=20)

# %% [markdown]
# **What to notice.** At 90° the nose is on the left: who looks from $+x$ has $+z$ on the left hand. None of these views was
# stored.
#
# ## A failure on purpose
#
# How large should a disc be? Divide and multiply all scales by ten. From the object's mesh a ray caster draws the truth at
# any size. Predict for each row, 64 and 192 pixels wide: which of the three scenes scores best?

# %% alt="The biplane true, with scales a tenth, as built, and ten times too large; at 192 pixels the small scales are dust, at 64 pixels they look fine"
# NBVAL_CHECK_OUTPUT
mesh = load_mesh(mesh_path(OBJECT))
tried = {"scales / 10": 0.05, "as built": 0.5, "scales x 10": 5.0}  # radius
scenes = [splats(points, normals, colors, radius) for radius in tried.values()]
rows, captions, scores, thin = {}, {}, {}, {}
for size in (64, LARGE):
    four = Cameras.orbit(4, azimuth=[30.0, 120.0, 210.0, 300.0], width=size, height=size).to(DEVICE)
    target = on_white(torch.tensor(render_mesh(mesh, four).rgba, device=DEVICE))
    drawn = [draw(one, four) for one in scenes]
    scores[size] = [psnr(picture, target).item() for picture in drawn]
    thin[size] = [psnr(draw(one, four, eps2d=0.05), target).item() for one in scenes]
    rows[f"{size} pixels"] = torch.stack([target[0]] + [picture[0] for picture in drawn])
    captions[f"{size} pixels"] = ["PSNR of 4 views:"] + [f"{value:.1f} dB" for value in scores[size]]
display(viz.compare(rows, columns=["true", *tried], captions=captions, cell=1.9,
                    alt="true picture and three scales of splats, at 64 and at 192 pixels"))
at64, at192, thin64 = scores[64], scores[LARGE], thin[64]
print("192 pixels: as built beats both others by 5 dB:", at192[1] - max(at192[0], at192[2]) >= 5)
print(" 64 pixels: a tenth of the scales beats as built by 1 dB:", at64[0] - at64[1] >= 1)
print(" 64 pixels, thinner drawing: as built beats it by 5 dB:", thin64[1] - thin64[0] >= 5)

# %% [markdown]
# **What to notice.** Ten times too large is fog at any size. Ten times too small is dust at 192 pixels, yet *wins* at 64: the
# rasterizer adds `eps2d` = 0.3 pixels² to the variance of every splat it draws (lesson 01 says why), which closes up the dust
# and makes the right discs overhang. With `eps2d=0.05` the order turns round. A score holds for one picture size.
#
# ## Keep it
#
# `save_ply` writes the format of the original 3D Gaussian splatting code, which most viewers read. It stores
# $\mathrm{logit}(o)$ and $\log s$: any real numbers, so that an optimiser can move them freely. Three
# numbers for a normal stay unused. Does the scene survive? And what should happen to a file cut in half?

# %%
# NBVAL_CHECK_OUTPUT
OUT.mkdir(exist_ok=True)
file = save_ply(scene, OUT / f"{OBJECT}.ply")
again = load_ply(file)
for name in ("means", "quats", "scales", "opacities", "colors"):
    difference = (getattr(again, name) - getattr(scene, name).cpu()).abs().max().item()
    print(f"{name:<10} differ by less than 1e-6:", difference < 1e-6)
body = file.read_bytes().split(b"end_header\n", 1)[1]
print("bytes per Gaussian:", len(body) // scene.num, "= (14 + 3 unused) numbers x 4")
half = OUT / "half.ply"
half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
try:
    load_ply(half)
except ValueError:
    print("half a file: refused")

# %% [markdown]
# Drop `notebooks/outputs/biplane.ply` into a splat viewer, or give it to `gsgen view` in a terminal.
#
# ## Eight objects turn
#
# Does your function work on other objects? Predict: which will score worst?

# %% tags=["main"] alt="Top: true pictures of eight real objects. Below: the same objects drawn from 2,048 Gaussians each, with their PSNR"
turn = Cameras.orbit(36, elevation=20.0, width=96, height=96).to(DEVICE)
truth, mine, captions, frames = [], [], [], []
for other in shelf:
    its_scene = splats(*cloud(other))
    its_true = on_white(torch.tensor(other.images, device=DEVICE) / 255)
    its_views = draw(its_scene, other.cameras.to(DEVICE))
    captions.append(f"{psnr(its_views, its_true).item():.1f} dB")
    truth.append(its_true[1])
    mine.append(its_views[1])
    frames.append(draw(its_scene, turn))
display(viz.compare({"true": torch.stack(truth), "splats": torch.stack(mine)},
                    columns=[name.replace("_", " ") for name in SHELF], captions={"splats": captions}, cell=1.1,
                    alt="true pictures of eight objects above the same views of their splats, with PSNR"))
row = torch.cat(frames, dim=2)  # 8 x (36, 96, 96, 3) -> (36, 96, 768, 3)
movie = viz.save_animation(row, OUT / "shelf.webp", quality=40, alt="eight splat objects turning around")
display(HTML(movie.html()))

# %% [markdown]
# **What to notice.** One rule, no optimisation, and each object is recognisable. Rocking horse and motorcycle score
# lowest: they show the most outline, and there discs fail. In lesson 01 the pictures' gradient mends it.

# %% [markdown]
# ## Exercises
#
# Write your answer and run the cell: "passed", "not yet" with a hint, or "not attempted". Solutions are in
# `notebooks/solutions`.
#
# ### Exercise 1 · Where does the camera stand? (15 minutes)
#
# Write `eye(azimuth, elevation, radius)`, with the angles of `Cameras.orbit`, in degrees: the position $(x, y, z)$ of the
# camera.


# %% exercise="1"
# NBVAL_CHECK_OUTPUT
def eye(azimuth, elevation, radius):
    """Degrees, degrees, distance -> the three coordinates of the camera."""
    ### BEGIN SOLUTION
    a, e = np.radians(azimuth), np.radians(elevation)
    return radius * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    ### END SOLUTION


check(nb00.exercise_1, eye)

# %% [markdown] solution=true
# Elevation first: the height is $r \sin e$, and $r \cos e$ is left for the horizontal circle. On that circle azimuth 0 is
# $+z$, so $z$ takes the cosine and $x$ the sine.

# %% [markdown]
# ### Exercise 2 · What the file holds (8 minutes)
#
# The file stores the logit $l = \log\frac{o}{1 - o}$. Write both directions for tensors, on your honour without
# `torch.logit` and `torch.sigmoid`.


# %% exercise="2"
# NBVAL_CHECK_OUTPUT
def to_raw(opacity):
    """Opacity in (0, 1) -> logit, any real number."""
    ### BEGIN SOLUTION
    return torch.log(opacity / (1 - opacity))
    ### END SOLUTION


def to_opacity(raw):
    """Logit -> opacity in (0, 1)."""
    ### BEGIN SOLUTION
    return 1 / (1 + torch.exp(-raw))
    ### END SOLUTION


check(nb00.exercise_2, to_raw, to_opacity)

# %% [markdown] solution=true
# Solve $l = \log\frac{o}{1-o}$ for $o$: $e^{l} (1 - o) = o$, so $o = \frac{e^{l}}{1 + e^{l}} = \frac{1}{1 + e^{-l}}$. The second
# form does not overflow for large positive $l$; it is the logistic function.

# %% [markdown]
# ### Exercise 3 · Predict, then run (3 minutes)
#
# Two splats of opacity 0.5 stand exactly behind each other. How opaque is their common centre: (a) 0.5, (b) 0.75 or (c) 1?
# Set `prediction`; the cell then draws them. What is the formula for any number of splats?

# %% exercise="3"
# NBVAL_CHECK_OUTPUT
### BEGIN SOLUTION
prediction = "b"
### STUB
# prediction = None  # "a", "b" or "c"
### END SOLUTION

if prediction is not None:
    two = Gaussians.random(2, scale=0.1, generator=torch.Generator().manual_seed(SEED))
    means = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, -0.1]])
    two = replace(two, means=means, opacities=torch.full((2,), 0.5))
    picture = rasterize(two, Cameras.orbit(1, elevation=0.0, width=65, height=65))
    print(f"drawn: {picture.alpha[0, 32, 32].item():.3f}")
check(nb00.exercise_3, prediction)

# %% [markdown] solution=true
# The first splat lets half of the light pass, the second half of that: $1 - (1 - 0.5)^2 = 0.75$. For splats with coverages
# $\alpha_i$ the pixel is covered by $1 - \prod_i (1 - \alpha_i)$; lesson 01 builds its rasterizer on this product.

# %% [markdown]
# ### Exercise 4 · Derive: what is a decibel worth? (8 minutes)
#
# Every pixel error is halved. Derive by how many dB the PSNR rises, then write `gain(k)` for errors `k` times smaller. How
# much smaller are the errors of a method that gains 1 dB?


# %% exercise="4"
# NBVAL_CHECK_OUTPUT
def gain(k):
    """All pixel errors become k times smaller -> the rise of the PSNR in dB."""
    ### BEGIN SOLUTION
    return 20 * np.log10(k)
    ### END SOLUTION


check(nb00.exercise_4, gain)

# %% [markdown] solution=true
# The mean squared error falls by $k^2$, so PSNR rises by $10 \log_{10} k^2 = 20 \log_{10} k$: 6.02 dB for half the error, and
# 1 dB for errors $10^{1/20} \approx 1.12$ times smaller.

# %% [markdown]
# ### Exercise 5 · Open: more points (25 minutes)
#
# `sample_surface(mesh, n, np.random.default_rng(SEED))` gives any number of points, normals and colours. With four times as
# many, which `radius` is best at 192 pixels, and what PSNR do you reach? Evidence: a table (points, radius, PSNR) and one
# sentence on whether they are worth it.

# %% exercise="5"
mesh = load_mesh(mesh_path(OBJECT))
four = Cameras.orbit(4, azimuth=[30.0, 120.0, 210.0, 300.0], width=LARGE, height=LARGE).to(DEVICE)
target = on_white(torch.tensor(render_mesh(mesh, four).rgba, device=DEVICE))


def score_of(n, radius):
    """PSNR in dB, at 192 pixels, of n discs with this radius."""
    ### BEGIN SOLUTION
    sample = [torch.tensor(x, device=DEVICE) for x in sample_surface(mesh, n, np.random.default_rng(SEED))]
    return psnr(draw(splats(*sample, radius), four), target).item()
    ### END SOLUTION


# %% solution=true
for n in (2048, 8192):
    tried = {radius: score_of(n, radius) for radius in (0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8)}
    for radius, value in tried.items():
        print(f"{n:5d} points   radius {radius:.2f}   PSNR {value:.1f} dB")
    print(f"{n:5d} points   best radius {max(tried, key=tried.get):.2f}")

# %% [markdown] solution=true
# The best radius is 0.5 with 2,048 points and 0.45 with 8,192. It lies inside the grid: on both sides the score falls.
# Four times the points gain 1.6 dB, so errors become 1.2 times smaller (exercise 4), and memory and file four times
# larger. The spacing halves, and with it the overhang at the outline, but `eps2d` widens every splat as before.

# %% [markdown]
# ## Summary
#
# | claim | where |
# |---|---|
# | ways to a 3D object differ by three powers of ten in reported time | The map |
# | each surface point gives one Gaussian; five tensors are a scene | From points to Gaussians |
# | 2,048 flat discs reach 20 dB on the biplane; four wrong answers score less | How good is it? |
# | the right scale follows the spacing; small pictures hide dust | A failure on purpose |
# | the scene survives a file; half a file is refused | Keep it |
# | the same lines serve other objects | Eight objects turn |
#
# Next: lesson 01 writes the rasterizer itself.
#
# ## References
#
# - Kerbl, Kopanas, Leimkühler, Drettakis 2023, 3D Gaussian Splatting for Real-Time Radiance Field Rendering: section 4, eq. 6.
# - Times on the map: Tang et al. 2024 (DreamGaussian; LGM), Xu et al. 2024 (GRM), Henderson et al. 2024, Liao et al. 2025
#   (VAR), Xiang et al. 2024 (TRELLIS).
# - Objects: Sweet Home 3D furniture libraries; creators and licences in `data/CREDITS.md`.
#
# ## Time and memory

# %%
print(time_and_memory(STARTED))
