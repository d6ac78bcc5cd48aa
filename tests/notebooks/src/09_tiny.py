# %% [markdown]
# # 09 · A tiny lesson
#
# CPU 1 s · GPU 1 s · nothing is trained
#
# <!-- colab-badge -->
#
# You draw a red square and compute $\alpha_i = o_i \exp(-\sigma_i)$.

# %% tags=["setup"]

# %% tags=["shared"]
import math

from IPython.display import display
from PIL import Image

# %%
# NBVAL_CHECK_OUTPUT
print("area of a circle:", round(math.pi * 2.0**2, 3))

# %% tags=["main"] alt="A red square"
display(Image.new("RGB", (16, 16), "red"))

# %% [markdown]
# **What to notice.** It is red:
# $$ \sum_{i=1}^{N} T_i \, \alpha_i * c_i $$

# %% [markdown]
# ## Exercises

# %% exercise="1"
def area(radius):
    """Area of a circle."""
    ### BEGIN SOLUTION
    return math.pi * radius**2
    ### END SOLUTION


# %%
# NBVAL_CHECK_OUTPUT
try:
    print("exercise 1:", "passed" if math.isclose(area(1.0), math.pi) else "not yet")
except NotImplementedError:
    print("exercise 1: not attempted")

# %% exercise="2"
### BEGIN SOLUTION
letter = "b"
### STUB
# letter = None  # "a" or "b"
### END SOLUTION

# %% [markdown] solution=true
# It is b, because a is wrong.

# %% [markdown]
# ## Summary
