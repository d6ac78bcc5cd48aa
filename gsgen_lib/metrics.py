"""How good is a picture, how good is a shape: the scores used everywhere in this course.

Problem. Two renders are compared pixel by pixel (PSNR), by local structure (SSIM), by the
features of a trained network (LPIPS, in `gsgen_lib.perceptual`), and two shapes by their points
(Chamfer). Every score is a short function of plain tensors.

    PSNR    = -10 log10( mean((p - t)^2) )                             p = pred, t = target
    SSIM    = (2 mu_p mu_t + c1)(2 s_pt + c2)
              / ((mu_p^2 + mu_t^2 + c1)(s_pp + s_tt + c2))             mu_* = means in a Gaussian window
                                                                       s_* = (co)variances there
    Chamfer = mean_a min_b |a - b|^k + mean_b min_a |a - b|^k          k = 1, or 2 when squared

Conventions. Images are float sRGB in [0, 1], shape (..., H, W, 3), composited on white.
Each score is computed per image; `reduction="mean"` then averages over images. So a mean PSNR is
the mean of per-image PSNRs, never the PSNR of the pooled error (the two differ).

Taught in notebook 01_gaussians_and_rendering. Sources: SSIM, Wang et al., "Image quality
assessment: from error visibility to structural similarity", IEEE TIP 2004, Section III-C;
Chamfer, Fan et al., "A point set generation network", CVPR 2017, Section 4.2; bootstrap, Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, Section 13.3.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsgen_lib.perceptual import lpips, lpips_name  # noqa: F401  (all scores in one place)

SSIM_WINDOW = 11  # pixels
SSIM_SIGMA = 1.5  # pixels
RANGE_SLACK = 1e-4  # renders overshoot [0, 1] by rounding


def check_images(name: str, images: Tensor, channels: int = 3, values: bool = True) -> None:
    """Refuse anything but finite float images (..., H, W, `channels`) with values in [0, 1].

    values=False checks type and shape only. Raises TypeError (not a floating-point tensor) or
    ValueError (shape, non-finite, range).

    >>> check_images("pred", torch.zeros(2, 16, 16, 3))
    >>> check_images("pred", torch.zeros(16, 16, 4))
    Traceback (most recent call last):
    ValueError: pred: got shape (16, 16, 4), wanted (..., H, W, 3)
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name}: got {got}, wanted a floating-point torch tensor")
    if images.ndim < 3 or images.shape[-1] != channels or images.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(images.shape)}, wanted (..., H, W, {channels})")
    if not values:
        return
    low, high = (value.item() for value in torch.aminmax(images.detach()))  # NaN propagates
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name}: holds non-finite values, wanted numbers in [0, 1]")
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        raise ValueError(f"{name}: got values in [{low:.4g}, {high:.4g}], wanted [0, 1]; "
                         "clamp(0, 1) a render before scoring it")


def _check_pair(pred: Tensor, target: Tensor, channels: int = 3, values: bool = True) -> None:
    check_images("pred", pred, channels, values)
    check_images("target", target, channels, values)
    if pred.shape != target.shape:
        raise ValueError(f"pred: got shape {tuple(pred.shape)}, "
                         f"wanted that of target, {tuple(target.shape)}")


def _reduce(per_image: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return per_image.mean()
    if reduction == "none":
        return per_image
    raise ValueError(f"reduction: got {reduction!r}, wanted 'mean' or 'none'")


# ------------------------------------------------------------------------------------ images


def psnr(pred: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Peak signal-to-noise ratio in dB, for images in [0, 1]; higher is better.

    pred, target: (..., H, W, 3). Returns (...,) with `reduction="none"`, or the mean over images
    of the per-image values, a scalar. Equal images have error 0 and PSNR +inf, and one such image
    makes the mean +inf: that is the truth of the formula, and a sign to look at the data.

    >>> half = torch.full((16, 16, 3), 0.5)
    >>> round(psnr(half, half + 0.1).item(), 3)      # -10 log10(0.1^2) = 20 dB
    20.0
    """
    _check_pair(pred, target)
    mse = (pred - target).square().mean(dim=(-3, -2, -1))  # (..., H, W, 3) -> (...,)
    return _reduce(-10 * mse.log10(), reduction)


def ssim(pred: Tensor, target: Tensor, reduction: str = "mean", validate: bool = True) -> Tensor:
    """Structural similarity, at most 1 (equal images); differentiable, so usable as a loss.

    Gaussian window of 11 x 11 pixels, sigma 1.5, c1 = 0.01^2, c2 = 0.03^2, population covariance,
    averaged over channels and over the windows that lie wholly inside the image: the original
    definition, and the value scikit-image gives with `gaussian_weights=True,
    use_sample_covariance=False`. Code that pads the image first (torchmetrics by reflection, the
    original 3DGS code with zeros) gives slightly other numbers. (Wang et al. 2004, Eq. 13 and Section III-C.)

    pred, target: (..., H, W, 3) with H, W >= 11. Returns (...,) or their mean.
    validate=False skips the checks of range and finiteness, for training loops: there a raw
    render may leave [0, 1], and the check would make a GPU wait. Half precision, given or by autocast, is
    left out: variances would fall below 0 in it.

    >>> image = torch.linspace(0, 1, 16 * 16 * 3).reshape(16, 16, 3)
    >>> ssim(image, image).item()
    1.0
    >>> bool(ssim(image, 1 - image) < 0.5)
    True
    """
    _check_pair(pred, target, values=validate)
    height, width = pred.shape[-3:-1]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"pred: got {height} x {width} pixels, wanted at least "
                         f"{SSIM_WINDOW} x {SSIM_WINDOW} for the SSIM window")
    # A colour channel is an image of its own here: (..., H, W, 3) -> (P, H, W), P = 3 * images.
    p, t = (x.movedim(-1, -3).reshape(-1, height, width) for x in (pred, target))
    p, t = (x if x.dtype == torch.float64 else x.float() for x in (p, t))
    planes = torch.cat([p, t, p * p, t * t, p * t])  # (5 P, H, W)

    offsets = torch.arange(SSIM_WINDOW, dtype=p.dtype, device=p.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = window / window.sum()
    n = planes.shape[0]
    # The window is separable: 11 + 11 products a pixel instead of 121. Grouped convolution, one
    # group per plane, is the fastest form of it on a CPU.
    with torch.autocast(p.device.type, enabled=False):
        blurred = F.conv2d(planes[None], window.view(1, 1, -1, 1).expand(n, 1, -1, 1), groups=n)
        blurred = F.conv2d(blurred, window.view(1, 1, 1, -1).expand(n, 1, 1, -1), groups=n)[0]
    mu_p, mu_t, pp, tt, pt = blurred.chunk(5)  # each (P, H - 10, W - 10)

    s_pp, s_tt, s_pt = pp - mu_p**2, tt - mu_t**2, pt - mu_p * mu_t
    c1, c2 = 0.01**2, 0.03**2
    value = ((2 * mu_p * mu_t + c1) * (2 * s_pt + c2)) / (
        (mu_p**2 + mu_t**2 + c1) * (s_pp + s_tt + c2))
    per_image = value.mean(dim=(-2, -1)).reshape(*pred.shape[:-3], 3).mean(dim=-1)  # (P,) -> (...,)
    return _reduce(per_image, reduction)


def foreground_box(alpha: Tensor, threshold: float = 0.5) -> Tensor:
    """Smallest axis-aligned box around the pixels with alpha > threshold, as a mask.

    alpha: (..., H, W, 1). Returns a bool tensor (..., H, W), True inside the box.
    Raises ValueError when an image has no such pixel.

    >>> alpha = torch.zeros(8, 8, 1); alpha[2, 3] = 1; alpha[4, 6] = 1
    >>> foreground_box(alpha).nonzero().aminmax(dim=0).max.tolist()     # last row, last column
    [4, 6]
    """
    check_images("alpha", alpha, channels=1)
    inside = alpha[..., 0] > threshold  # (..., H, W)
    if not bool(inside.flatten(-2).any(-1).all()):
        raise ValueError(f"alpha: an image has no pixel above {threshold}, so no foreground box")
    spans = []
    for dim in (-1, -2):  # rows that hold foreground, then columns
        line = inside.any(dim=dim)
        # True from the first to the last True: running maximum from both ends.
        seen = line.int().cummax(-1).values
        ahead = line.int().flip(-1).cummax(-1).values.flip(-1)
        spans.append((seen * ahead).bool())
    rows, columns = spans
    return rows[..., :, None] & columns[..., None, :]


def box_psnr(pred: Tensor, target: Tensor, target_alpha: Tensor, reduction: str = "mean") -> Tensor:
    """PSNR over the bounding box of the target's foreground, in dB.

    A small object on white gets a high PSNR for its empty background; the box leaves most of it
    out. pred, target: (..., H, W, 3); target_alpha: (..., H, W, 1). Returns (...,) or the mean.

    >>> target = torch.ones(8, 8, 3); alpha = torch.zeros(8, 8, 1); alpha[2:4, 2:6] = 1
    >>> pred = target - 0.1 * alpha
    >>> [round(x.item(), 2) for x in (psnr(pred, target), box_psnr(pred, target, alpha))]
    [29.03, 20.0]
    """
    _check_pair(pred, target)
    if target_alpha.shape[:-1] != target.shape[:-1]:
        raise ValueError(f"target_alpha: got shape {tuple(target_alpha.shape)}, "
                         f"wanted {(*target.shape[:-1], 1)}")
    box = foreground_box(target_alpha).to(pred.dtype)  # (..., H, W)
    squared = (pred - target).square().mean(dim=-1)  # (..., H, W)
    mse = (squared * box).sum(dim=(-2, -1)) / box.sum(dim=(-2, -1))
    return _reduce(-10 * mse.log10(), reduction)


def alpha_iou(pred_alpha: Tensor, target_alpha: Tensor, threshold: float = 0.5,
              reduction: str = "mean") -> Tensor:
    """Intersection over union of two silhouettes, in [0, 1].

    pred_alpha, target_alpha: (..., H, W, 1). A pixel belongs to the silhouette when its alpha is
    above the threshold. Two empty silhouettes agree: 1. Returns (...,) or the mean.

    >>> a = torch.zeros(4, 4, 1); a[:, :2] = 1
    >>> b = torch.zeros(4, 4, 1); b[:, 1:3] = 1
    >>> round(alpha_iou(a, b).item(), 4)
    0.3333
    """
    _check_pair(pred_alpha, target_alpha, channels=1)
    p, t = pred_alpha[..., 0] > threshold, target_alpha[..., 0] > threshold
    intersection = (p & t).sum(dim=(-2, -1)).float()
    union = (p | t).sum(dim=(-2, -1)).float()
    return _reduce(torch.where(union > 0, intersection / union.clamp(min=1), 1.0), reduction)


# ------------------------------------------------------------------------------------ points


def chamfer(a: Tensor, b: Tensor, squared: bool = False, nearest: str = "auto") -> Tensor:
    """Chamfer distance between point sets: sum of the two mean nearest-neighbour distances.

    squared=False uses |a - b| (world units), squared=True |a - b|^2 (units squared; Fan et al.
    2017, and the default of most libraries). Fan et al. sum over points where this takes means, other
    papers halve the sum: compare numbers only within one definition.

    a: (..., N, D), b: (..., M, D) with the same leading dimensions, N, M >= 1. Returns (...,), empty for no pairs.
    nearest: who finds the neighbours, "kdtree" (scipy, exact, CPU), "cdist" (torch, on the
    tensors' device, in chunks) or "auto" (kdtree for CPU tensors). The distance to the neighbour
    found is recomputed in torch, so both give gradients to a and b; coincident points give 0.

    >>> a = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    >>> b = torch.tensor([[0.0, 0, 2]])
    >>> round(chamfer(a, b).item(), 4)     # (2 + sqrt 5) / 2 + 2
    4.118
    """
    for name, points in (("a", a), ("b", b)):
        if not isinstance(points, Tensor) or not points.is_floating_point():
            raise TypeError(f"{name}: got {type(points).__name__}, wanted a floating-point tensor")
        if points.ndim < 2 or 0 in points.shape[-2:]:
            raise ValueError(f"{name}: got shape {tuple(points.shape)}, wanted (..., N, D), N >= 1")
        if not bool(points.isfinite().all()):
            raise ValueError(f"{name}: holds non-finite coordinates")
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"b: got shape {tuple(b.shape)}, wanted the leading dimensions and D of a, "
                         f"{tuple(a.shape)}")
    if nearest not in ("auto", "kdtree", "cdist"):
        raise ValueError(f"nearest: got {nearest!r}, wanted 'auto', 'kdtree' or 'cdist'")
    if nearest == "auto":
        nearest = "kdtree" if a.device.type == "cpu" else "cdist"
    find = _nearest_kdtree if nearest == "kdtree" else _nearest_cdist

    values = []
    for one_a, one_b in zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), strict=True):
        total = 0.0
        for source, goal in ((one_a, one_b), (one_b, one_a)):
            offset = source - goal[find(source.detach(), goal.detach())]  # (N, D)
            distance = offset.square().sum(-1) if squared else torch.linalg.vector_norm(offset, dim=-1)
            total = total + distance.mean()
        values.append(total)
    return torch.stack(values).reshape(a.shape[:-2]) if values else a.new_zeros(a.shape[:-2])


def _nearest_kdtree(source: Tensor, goal: Tensor) -> Tensor:
    """Index of the nearest row of goal for each row of source, by a k-d tree."""
    from scipy.spatial import cKDTree

    _, index = cKDTree(goal.cpu().double().numpy()).query(source.cpu().double().numpy())
    return torch.as_tensor(index, dtype=torch.long, device=source.device)


def _nearest_cdist(source: Tensor, goal: Tensor, chunk: int = 2048) -> Tensor:
    """The same by all pairwise distances, `chunk` rows at a time to bound the memory."""
    # The matrix-product form of cdist loses half the digits when points lie close together.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(rows, goal, compute_mode=exact).argmin(-1)
                      for rows in source.split(chunk)])


# --------------------------------------------------------------------------------- intervals


def bootstrap_ci(values, generator: np.random.Generator, level: float = 0.95,
                 resamples: int = 10_000) -> tuple[float, float, float]:
    """Mean and percentile-bootstrap interval of a score over objects (and seeds).

    values: (n_objects,), one score per object, or (n_seeds, n_objects) where training is random:
    then seeds and objects are drawn with replacement independently, so both count as chance.
    level: coverage of the interval. Returns (mean, low, high). Few objects give an interval that
    is too narrow, and so do few seeds (three seeds show two thirds of their variance): below about
    ten, say how many there are beside it.

    >>> mean, low, high = bootstrap_ci([28.0, 30.0, 31.0, 35.0], np.random.default_rng(0))
    >>> mean, bool(28 <= low < mean < high <= 35)
    (31.0, True)
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"values: got shape {scores.shape}, wanted (n_objects,) or "
                         "(n_seeds, n_objects) with at least one entry")
    if not np.isfinite(scores).all():
        raise ValueError("values: holds non-finite scores (a PSNR of equal images is inf)")
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, wanted numpy.random.Generator")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, wanted a number between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples: got {resamples}, wanted at least 1")
    scores = np.atleast_2d(scores)  # (S, K)
    n_seeds, n_objects = scores.shape
    means = np.empty(resamples)
    for i in range(resamples):
        seeds = generator.integers(n_seeds, size=n_seeds)
        objects = generator.integers(n_objects, size=n_objects)
        means[i] = scores[np.ix_(seeds, objects)].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(scores.mean()), float(low), float(high)
