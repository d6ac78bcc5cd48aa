"""How far apart are two sets of pictures, or of points? Scores for samples that have no partner.

Problem. A generated picture has no true picture to be compared with, so whole sets are compared. A
picture enters as a feature vector (`gsgen_lib.image_features`), a 3D shape or a toy sample as a point.

    x_1..x_n, y_1..y_m    the two sets, vectors of dimension D
    k(x, y) = (x.y / D + 1)^3                                       the kernel of KID
    KID   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
    FID   = |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))     mu, S = mean and covariance
    SW_p  = (mean over directions u of W_p(u.x, u.y)^p)^(1/p)       W_p = 1D optimal transport
    ED    = (2 E|x - y| - E|x - x'| - E|y - y'|)^(1/2)              energy distance

KID is unbiased, so it can be used for small sets and may come out slightly negative for equal
distributions. FID grows with 1/n for the very same distribution and needs far more samples than D:
here it is for comparison with papers only. SW and ED serve points of few dimensions. One number cannot
tell blurred samples from a missing mode; precision (are samples plausible?) and recall (is
everything covered?) can.

A number means nothing without the features that made it. So each function asks for their name
(`features=features_name()`) and returns a `Distance` that prints with it. Everything is computed
in float64, whatever comes in, and without gradients.

Taught in the notebooks that score samples. Sources: KID, Binkowski et al., "Demystifying MMD GANs",
ICLR 2018, Section 4; FID, Heusel et al., NeurIPS 2017, Eq. 6; SW, Bonneel et al., "Sliced and Radon
Wasserstein barycenters of measures", 2015, Section 2; ED, Szekely and Rizzo, "Energy statistics",
2013, Eq. 5; precision and recall, Kynkaanniemi et al., NeurIPS 2019, Eq. 1 and 2; jackknife, Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, Chapter 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1024  # rows of a pairwise matrix held at once


@dataclass(frozen=True)
class Distance:
    """A number, its standard error (nan where there is none), and what it is, to be printed together.

    >>> print(Distance(0.0123, 0.002, "KID, MobileNetV2 at 128, 300 against 35"))
    KID, MobileNetV2 at 128, 300 against 35: 0.0123 +- 0.002
    >>> float(Distance(0.5, float("nan"), "FID, points, 9 against 9"))
    0.5
    """

    value: float
    std: float
    name: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4g}" + ("" if self.std != self.std else f" +- {self.std:.2g}")


def kid(features_a: Tensor, features_b: Tensor, *, features: str, subsets: int | None = None,
        subset_size: int | None = None, generator: torch.Generator | None = None) -> Distance:
    """Kernel Inception distance: unbiased MMD^2 with the cubic kernel; 0 for equal distributions.

    features_a: (N, D), features_b: (M, D), N, M >= 2; features: their name, `features_name()`.
    subsets=None: one estimate from all pairs; `std` is its jackknife standard error over samples (where the
    distributions are equal it is too large, by about 1.4).
    subsets=S: the mean over S random subsets of `subset_size` (default: as many as the smaller
    set has, at most 1000) from each set, as the paper's code does; `std` is then the deviation between
    subsets, not the error of the mean, and depends on their size. generator: on the CPU, for subsets.

    The error treats samples as independent. Views of one object are not: then pass one view per object,
    or several and read the error as too small. Raises TypeError or ValueError naming the argument.
    (Binkowski et al. 2018, Section 4.)

    >>> g = torch.Generator().manual_seed(0)
    >>> a, b = torch.randn(2, 200, 8, generator=g)
    >>> same, shifted = kid(a, b, features="points"), kid(a, b + 1, features="points")
    >>> abs(same.value) < 3 * same.std, shifted.value > 10 * shifted.std
    (True, True)
    """
    x, y = _pair("features_a", features_a, "features_b", features_b, minimum=3 if subsets is None else 2)
    name = _name("KID", features, len(x), len(y))
    if subsets is None:
        if subset_size is not None:
            raise ValueError(f"subset_size: got {subset_size} without subsets, wanted subsets=S with it")
        return Distance(*_mmd_jackknife(x, y), name)
    smaller = min(len(x), len(y))
    subset_size = min(smaller, 1000) if subset_size is None else subset_size
    if not isinstance(subsets, int) or subsets < 1:
        raise ValueError(f"subsets: got {subsets!r}, wanted None or an integer of at least 1")
    if not isinstance(subset_size, int) or not 2 <= subset_size <= smaller:
        raise ValueError(f"subset_size: got {subset_size!r}, wanted an integer from 2 to {smaller}")
    _check_generator(generator)
    values = []
    for _ in range(subsets):
        i, j = (torch.randperm(len(s), generator=generator)[:subset_size].to(s.device) for s in (x, y))
        values.append(_mmd_jackknife(x[i], y[j])[0])
    values = torch.tensor(values, dtype=torch.float64)
    spread = values.std().item() if subsets > 1 else float("nan")
    return Distance(values.mean().item(), spread, f"{name}, {subsets} subsets of {subset_size}")


def fid(features_a: Tensor, features_b: Tensor, *, features: str) -> Distance:
    """Frechet distance between Gaussians fitted to two sets; biased upwards unless N, M >> D.

    features_a: (N, D), features_b: (M, D), N, M >= 2. `std` is nan: resampling would show the spread but
    not the bias. With centred sets A = X / sqrt(N - 1), B alike, the trace of (S_x S_y)^(1/2) is the sum of
    singular values of A B^T, so no matrix root is taken. (Heusel et al. 2017, Eq. 6.)

    >>> a = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> round(fid(a, a + torch.tensor([2.0, 0, 0]), features="points").value, 6)     # |shift|^2
    4.0
    """
    x, y = _pair("features_a", features_a, "features_b", features_b, minimum=2)
    roots = []
    for s in (x, y):
        root = (s - s.mean(0)) / (len(s) - 1) ** 0.5  # (N, D), covariance = root^T root
        roots.append(torch.linalg.qr(root).R if len(s) > s.shape[1] else root)  # at most (D, D), same covariance
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    value = (x.mean(0) - y.mean(0)).square().sum() + sum(r.square().sum() for r in roots) - 2 * cross
    return Distance(value.item(), float("nan"), _name("FID", features, len(x), len(y)))


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, *,
                       generator: torch.Generator | None, p: int = 2, features: str = "points") -> Distance:
    """Sliced Wasserstein distance: optimal transport along random lines; in the units of the points.

    a: (N, D), b: (M, D), any sizes: along a line transport pairs quantiles, which is exact for N != M
    too. projections: number of random directions; p: 1 or 2. generator: a CPU generator, or None for
    torch's own. `std` is the Monte Carlo error from the finite number of directions; it says nothing
    about the chance in a and b. Two samples of one distribution are not at distance 0: compare
    with the distance between two halves of the data. (Bonneel et al. 2015, Section 2.)

    >>> g = torch.Generator().manual_seed(0)
    >>> a = torch.randn(300, 2, generator=g)
    >>> d = sliced_wasserstein(a, a + torch.tensor([3.0, 4.0]), generator=g)     # |shift| / sqrt D
    >>> abs(d.value - 5 / 2**0.5) < 4 * d.std
    True
    """
    x, y = _pair("a", a, "b", b)
    if not isinstance(projections, int) or projections < 1:
        raise ValueError(f"projections: got {projections!r}, wanted an integer of at least 1")
    if p not in (1, 2):
        raise ValueError(f"p: got {p!r}, wanted 1 or 2")
    _check_generator(generator)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(x.device)  # (D, projections), unit columns
    # Both quantile functions are constant between the ticks i / N and j / M; in units of 1 / (N M) the ticks
    # are integers, so equal ones fall together exactly.
    n, m = len(x), len(y)
    ticks = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(ticks, prepend=torch.zeros(1, dtype=ticks.dtype)).to(x) / (n * m)  # sum to 1
    rank_x, rank_y = (((ticks - 1) // step).to(x.device) for step in (m, n))
    costs = []
    for lines in directions.split(64, dim=1):
        px, py = (x @ lines).sort(dim=0).values, (y @ lines).sort(dim=0).values  # (N, 64), (M, 64)
        costs.append(widths @ (px[rank_x] - py[rank_y]).abs() ** p)  # W_p^p along each line
    costs = torch.cat(costs)
    value = costs.mean().item() ** (1 / p)
    error = (costs.std() / projections**0.5).item() if projections > 1 else float("nan")
    if p == 2:  # d sqrt(c) = dc / (2 sqrt(c))
        error = error / (2 * value) if value > 0 else 0.0
    return Distance(value, error, _name(f"SW{p}", features, n, m) + f", {projections} lines")


def energy_distance(a: Tensor, b: Tensor, *, features: str = "points") -> Distance:
    """Energy distance: from mean pairwise distances, without directions, kernels or chance; >= 0.

    a: (N, D), b: (M, D). Grows like the root of the units of the points; the sums include i = j, so it
    is 0 exactly for equal sets, and positive between two samples of one distribution. `std` is nan.
    (Szekely and Rizzo 2013, Eq. 5; the square root is taken, as scipy does in 1D.)

    >>> energy_distance(torch.zeros(3, 2), torch.tensor([[3.0, 4.0]])).value ** 2     # 2 * 5
    10.0...
    """
    x, y = _pair("a", a, "b", b)
    squared = 2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return Distance(max(squared, 0.0) ** 0.5, float("nan"), _name("energy distance", features, len(x), len(y)))


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of generated samples near real ones, share of real samples near generated ones, and what it is."""

    precision: float
    recall: float
    name: str

    def __str__(self) -> str:
        return f"{self.name}: precision {self.precision:.3f}, recall {self.recall:.3f}"


def precision_recall(generated: Tensor, real: Tensor, k: int = 3, *, features: str) -> PrecisionRecall:
    """Improved precision and recall: is a sample inside the other set's balls to its k-th neighbours?

    generated: (N, D), real: (M, D), N, M > k. Ball i of a set is centred at its sample i and reaches to that
    sample's k-th nearest neighbour in the set. precision = share of generated samples in any real
    ball, recall = share of real samples in any generated ball; both depend on N and M.
    (Kynkaanniemi et al. 2019, Eq. 1 and 2; k = 3 as there.)

    >>> g = torch.Generator().manual_seed(0)
    >>> real = torch.cat([torch.randn(100, 2, generator=g), torch.randn(100, 2, generator=g) + 20])
    >>> found = precision_recall(torch.randn(100, 2, generator=g) * 0.5, real, features="points")
    >>> found.precision > 0.9, found.recall < 0.6      # plausible, but one of two modes is missing
    (True, True)
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k: got {k!r}, wanted an integer of at least 1")
    x, y = _pair("generated", generated, "real", real, minimum=k + 1)

    def inside(samples: Tensor, balls: Tensor) -> float:
        # k + 1 smallest: each sample is its own nearest neighbour, at distance 0
        radius = torch.cat([torch.cdist(rows, balls, compute_mode=EXACT).topk(k + 1, largest=False).values[:, -1]
                            for rows in balls.split(CHUNK)])
        hits = [(torch.cdist(rows, balls, compute_mode=EXACT) <= radius).any(1) for rows in samples.split(CHUNK)]
        return torch.cat(hits).double().mean().item()

    return PrecisionRecall(inside(x, y), inside(y, x), _name(f"P&R(k={k})", features, len(x), len(y)))


# ----------------------------------------------------------------------------------------- parts

EXACT = "donot_use_mm_for_euclid_dist"  # the matrix-product form of cdist loses half the digits


def _kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Row sums (N,) and column sums (M,) of k(x_i, y_j) = (x_i.y_j / D + 1)^3, some rows at a time."""
    rows, columns = [], x.new_zeros(len(y))
    for chunk in x.split(CHUNK):
        k = (chunk @ y.T / x.shape[1] + 1) ** 3
        rows.append(k.sum(1))
        columns += k.sum(0)
    return torch.cat(rows), columns


def _within(x: Tensor) -> Tensor:
    """sum_{j != i} k(x_i, x_j) for each i, (N,)."""
    return _kernel_sums(x, x)[0] - (x.square().sum(1) / x.shape[1] + 1) ** 3


def _mmd_jackknife(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Unbiased MMD^2 and its standard error from leaving out one sample at a time.

    Without sample i, the sum over pairs of x loses twice row i and the mixed sum loses its row i, so
    all n + m leave-one-out values follow from the row sums.
    """
    n, m = len(x), len(y)
    in_x, in_y, (mixed_x, mixed_y) = _within(x), _within(y), _kernel_sums(x, y)
    xx, yy, xy = in_x.sum(), in_y.sum(), mixed_x.sum()
    value = xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    without_x = ((xx - 2 * in_x) / ((n - 1) * (n - 2)) + yy / (m * (m - 1)) - 2 * (xy - mixed_x) / ((n - 1) * m))
    without_y = (xx / (n * (n - 1)) + (yy - 2 * in_y) / ((m - 1) * (m - 2)) - 2 * (xy - mixed_y) / (n * (m - 1)))
    variance = sum((len(w) - 1) * w.var(correction=0) for w in (without_x, without_y))
    return value.item(), variance.sqrt().item()


def _mean_distance(x: Tensor, y: Tensor) -> float:
    """Mean of |x_i - y_j| over all pairs."""
    return sum(torch.cdist(rows, y, compute_mode=EXACT).sum().item() for rows in x.split(CHUNK)) / (len(x) * len(y))


def _name(score: str, features: str, n: int, m: int) -> str:
    if not isinstance(features, str) or not features:
        raise TypeError(f"features: got {features!r}, wanted the name of the features, such as features_name()")
    return f"{score}, {features}, {n} against {m}"


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        raise TypeError(f"generator: got {generator!r}, wanted a torch.Generator on the CPU, or None")


def _pair(name_a: str, a: Tensor, name_b: str, b: Tensor, minimum: int = 1) -> tuple[Tensor, Tensor]:
    """Both sets in float64 without gradient, after checking them."""
    for name, s in ((name_a, a), (name_b, b)):
        if not isinstance(s, Tensor) or not s.is_floating_point():
            got = s.dtype if isinstance(s, Tensor) else type(s).__name__
            raise TypeError(f"{name}: got {got}, wanted a floating-point torch tensor")
        if s.ndim != 2 or len(s) < minimum or s.shape[1] == 0:
            raise ValueError(f"{name}: got shape {tuple(s.shape)}, wanted (N, D) with N >= {minimum}, D >= 1")
        if not bool(s.isfinite().all()):
            raise ValueError(f"{name}: holds non-finite numbers")
    if a.shape[1] != b.shape[1] or a.device != b.device:
        raise ValueError(f"{name_b}: got D = {b.shape[1]} on {b.device}, wanted that of {name_a}, "
                         f"{a.shape[1]} on {a.device}")
    return a.detach().double(), b.detach().double()
