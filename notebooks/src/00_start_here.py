# %% [markdown]
# # 00 · Start here
#
# CPU under 1 min · GPU under 1 min · nothing is trained
#
# <!-- colab-badge -->
#
# You check that your machine can run the course, and look at your first Gaussians.

# %% [markdown]
# ## You will be able to
#
# - check with one call whether this machine can run the course, and read what the answer means;
# - draw a cloud of random Gaussians from a camera of your choice;
# - tell an exercise that you have not attempted from one that you have solved.

# %% [markdown]
# ## Set-up
#
# The next cell does nothing on your own machine. On Colab it fetches the course. After it come the imports
# and the knobs: numbers that you may turn, and run the notebook again.

# %% tags=["setup"]
# (the set-up cell is inserted here)

# %% tags=["shared"]
import time

import matplotlib.pyplot as plt
import torch

from gsgen_lib import Cameras, Gaussians, rasterize
from gsgen_lib.checks import check, cmp, nb00
from gsgen_lib.doctor import doctor, time_and_memory

STARTED = time.perf_counter()
SEED, NUMBER, SIZE = 0, 200, 96

# %% [markdown]
# ## Can this machine run the course?
#
# `doctor` looks at the libraries, the device, the rasterizer and the data, and prints one line for each.

# %%
exit_code = doctor()

# %%
# NBVAL_CHECK_OUTPUT
print("ready to run the course:", exit_code == 0)

# %% [markdown]
# ## A scene of Gaussians
#
# A Gaussian is a soft blob in space. It has a centre (`means`), a rotation (`quats`), a size along each of its
# three axes (`scales`), an opacity and a colour. Many of them make a scene. Which shapes do the tensors of a
# scene of 200 Gaussians have? Make a guess before you run the cell.

# %%
# NBVAL_CHECK_OUTPUT
scene = Gaussians.random(NUMBER, generator=torch.Generator().manual_seed(SEED))
for name in ("means", "quats", "scales", "opacities"):
    print(f"{name:<10} {tuple(getattr(scene, name).shape)}")

# %% tags=["main"] alt="A cloud of coloured, semi-transparent blobs seen from four sides, on white"
cameras = Cameras.orbit(4, width=SIZE, height=SIZE)
render = rasterize(scene, cameras, background=(1.0, 1.0, 1.0))
figure, axes = plt.subplots(1, 4, figsize=(8, 2.2))
for axis, image in zip(axes, render.rgb, strict=True):
    axis.imshow(image.clamp(0, 1).numpy())
    axis.axis("off")
plt.show()

# %% [markdown]
# **What to notice.** The same blobs appear in all four pictures, from four sides: the scene is one set of numbers in
# space, and a picture is only a question asked of it.

# %%
# NBVAL_CHECK_OUTPUT
print("pictures, height, width, channels:", tuple(render.rgb.shape))
print("every pixel is finite:", bool(torch.isfinite(render.rgb).all()))

# %%
# NBVAL_CHECK_OUTPUT
# White shows through where nothing covers it: rgb + (1 - alpha) * white is what a black background lacks.
on_black = rasterize(scene, cameras)
cmp("background", render.rgb, on_black.rgb + (1 - on_black.alpha))

# %% [markdown]
# ## Keep it
#
# `save_ply` writes the scene as a splat file that other viewers read too.

# %%
# NBVAL_CHECK_OUTPUT
import tempfile
from pathlib import Path

from gsgen_lib import load_ply, save_ply

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "scene.ply"
    save_ply(scene, path)
    again = load_ply(path)
for name in ("means", "scales", "opacities", "colors"):
    mine, read = getattr(scene, name), getattr(again, name)
    print(f"{name:<10}", tuple(mine.shape), tuple(read.shape))
cmp("means", again.means, scene.means)

# %% [markdown]
# ## Exercises
#
# The cell below each exercise checks your answer.

# %% [markdown]
# ### Exercise 1 · Put a picture on a background (5 minutes)
#
# Write `over(rgb, alpha, background)`: the picture `rgb` (H, W, 3), drawn on black with coverage `alpha`
# (H, W, 1), put on the colour `background` (3,). You should see "exercise 1: passed".


# %% exercise="1"
def over(rgb, alpha, background):
    """(H, W, 3) picture on black, (H, W, 1) coverage, (3,) colour -> (H, W, 3)."""
    ### BEGIN SOLUTION
    return rgb + (1 - alpha) * background
    ### END SOLUTION


# %%
# NBVAL_CHECK_OUTPUT
check(nb00.exercise_1, over)

# %% [markdown] solution=true
# The picture on black already holds every blob's colour times its coverage; only the light that passes through
# all of them, `1 - alpha`, still carries the background.

# %% [markdown]
# ### Exercise 2 · Predict, then run (3 minutes)
#
# You halve `scales` and leave everything else. What happens to the part of the picture that is covered?
# (a) It stays the same, (b) it shrinks, (c) it grows. Set `prediction` to a letter.

# %% exercise="2"
### BEGIN SOLUTION
prediction = "b"
### STUB
# prediction = None  # "a", "b" or "c"
### END SOLUTION

# %%
# NBVAL_CHECK_OUTPUT
check(nb00.exercise_2, prediction)

# %% [markdown]
# ## Summary
#
# | what was said | where you saw it |
# |---|---|
# | a scene is a few tensors | the table of shapes |
# | a picture is a question asked of the scene | the four views |
# | the background shows where coverage is missing | the comparison, exercise 1 |

# %% [markdown]
# ## References
#
# Kerbl, Kopanas, Leimkühler, Drettakis: 3D Gaussian Splatting for Real-Time Radiance Field Rendering, 2023.

# %% [markdown]
# ## Time and memory

# %%
print(time_and_memory(STARTED))
