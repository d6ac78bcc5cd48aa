"""Image and shape scores against peer libraries, closed forms and brute force."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from gsgen_lib import metrics


def noisy_pair(seed=0, shape=(3, 24, 31, 3), noise=0.1):
    """Smooth pictures and noisy versions of them, both in [0, 1]."""
    generator = np.random.default_rng(seed)
    smooth = gaussian_filter(generator.random(shape), (0, 2, 2, 0))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    noisy = np.clip(smooth + generator.normal(0, noise, shape), 0, 1)
    return torch.tensor(noisy, dtype=torch.float32), torch.tensor(smooth, dtype=torch.float32)


# --------------------------------------------------------------------------------- PSNR, SSIM


def test_psnr_per_image_equals_skimage_and_mean_is_mean_of_images():
    pred, target = noisy_pair()
    pred[1] = (pred[1] + 3 * target[1]) / 4  # images of unequal quality
    values = metrics.psnr(pred, target, reduction="none")
    oracle = [peak_signal_noise_ratio(t, p, data_range=1) for p, t in
              zip(pred.double().numpy(), target.double().numpy(), strict=True)]
    assert values.shape == (3,)
    np.testing.assert_allclose(values, oracle, atol=1e-4)
    assert metrics.psnr(pred, target).item() == pytest.approx(np.mean(oracle), abs=1e-4)
    pooled = -10 * (pred - target).square().mean().log10().item()
    assert abs(metrics.psnr(pred, target).item() - pooled) > 0.1  # the pooled PSNR is another number


def test_psnr_of_equal_images_is_inf():
    image = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[1] = 1 - other[1]
    values = metrics.psnr(other, image, reduction="none")
    assert values[0] == float("inf") and torch.isfinite(values[1])
    assert metrics.psnr(other, image) == float("inf")


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5])
def test_ssim_equals_skimage_and_torchmetrics(noise):
    pred, target = noisy_pair(noise=noise)
    target[1] = 0.03 * target[1]  # dark: the constants c1 and c2 count
    pred[1] = 0.03 * pred[1] + 0.01
    values = metrics.ssim(pred, target, reduction="none")
    for value, p, t in zip(values, pred.numpy(), target.numpy(), strict=True):
        oracle = structural_similarity(t, p, channel_axis=-1, data_range=1, gaussian_weights=True,
                                       sigma=1.5, use_sample_covariance=False)
        assert value.item() == pytest.approx(oracle, abs=1e-4)
        sample = structural_similarity(t, p, channel_axis=-1, data_range=1, win_size=11)
        assert abs(value.item() - sample) > 1e-4  # a flat window gives another number
    # torchmetrics averages over a padded picture; its map inside, 5 pixels off the border, is ours.
    _, full = structural_similarity_index_measure(
        pred.movedim(-1, 1), target.movedim(-1, 1), data_range=1.0, return_full_image=True)
    np.testing.assert_allclose(values, full[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3)), atol=1e-4)
    assert metrics.ssim(pred, target).item() == pytest.approx(values.mean().item(), abs=1e-6)


def test_ssim_gradient_equals_finite_differences():
    pred, target = (x[0, :13, :12].double() for x in noisy_pair())
    pred = (0.1 + 0.8 * pred).requires_grad_()
    metrics.ssim(pred, target).backward()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        direction = torch.randn(pred.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (metrics.ssim(pred + step * direction, target, validate=False)
                             for step in (1e-5, -1e-5))
        numeric = ((ahead - behind) / 2e-5).item()
        assert (pred.grad * direction).sum().item() == pytest.approx(numeric, rel=1e-6, abs=1e-9)


def test_ssim_falls_with_noise_and_leading_dimensions_are_kept():
    values = [metrics.ssim(*noisy_pair(noise=noise)).item() for noise in (0.01, 0.05, 0.2)]
    assert values == sorted(values, reverse=True)
    pred, target = (x.expand(2, 3, 24, 31, 3) for x in noisy_pair())
    for score in (metrics.psnr, metrics.ssim):
        per_image = score(pred, target, reduction="none")
        assert per_image.shape == (2, 3)
        torch.testing.assert_close(per_image[0], per_image[1])


# ----------------------------------------------------------------------------- box, silhouette


def test_box_psnr_equals_psnr_of_the_crop():
    pred, target = noisy_pair()
    alpha = torch.zeros(3, 24, 31, 1)
    boxes = [(2, 9, 4, 20), (0, 24, 0, 31), (23, 24, 30, 31)]  # y0, y1, x0, x1; the last one pixel
    for i, (y0, y1, x0, x1) in enumerate(boxes):
        alpha[i, 12, 15] = 0.4  # below the threshold
        alpha[i, y0, x0] = alpha[i, y1 - 1, x1 - 1] = 0.9  # two corners span the box
    values = metrics.box_psnr(pred, target, alpha, reduction="none")
    for value, p, t, (y0, y1, x0, x1) in zip(values, pred, target, boxes, strict=True):
        crop = metrics.psnr(p[y0:y1, x0:x1], t[y0:y1, x0:x1])
        assert value.item() == pytest.approx(crop.item(), abs=1e-4)
    assert abs(values[0] - metrics.psnr(pred[0], target[0])) > 1e-3


def test_box_of_an_empty_image_is_refused():
    alpha = torch.zeros(2, 8, 8, 1)
    alpha[0, 1, 1] = 1
    with pytest.raises(ValueError, match="alpha: an image has no pixel"):
        metrics.foreground_box(alpha)


def test_alpha_iou_equals_counting():
    generator = np.random.default_rng(0)
    p, t = (generator.random((4, 9, 7, 1)) for _ in range(2))
    p[3], t[3] = 0, 0  # both empty
    p[2], t[2] = 0, 1  # disjoint
    values = metrics.alpha_iou(torch.tensor(p), torch.tensor(t), reduction="none")
    for value, a, b in zip(values, p, t, strict=True):
        a, b = ({tuple(pixel) for pixel in np.argwhere(x[..., 0] > 0.5)} for x in (a, b))
        assert value.item() == pytest.approx(len(a & b) / len(a | b) if a | b else 1.0, abs=1e-6)
    assert values[2] == 0 and values[3] == 1


# ------------------------------------------------------------------------------------- Chamfer


def brute_force_chamfer(a, b, power):
    """Double loop over points, in float64."""
    total = 0.0
    for first, second in ((a, b), (b, a)):
        total += np.mean([min(np.sum((x - y) ** 2) ** (power / 2) for y in second) for x in first])
    return total


@pytest.mark.parametrize("nearest", ["kdtree", "cdist"])
@pytest.mark.parametrize("squared", [False, True])
def test_chamfer_equals_brute_force(nearest, squared):
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 33, 3)), generator.random((2, 21, 3))
    values = metrics.chamfer(torch.tensor(a), torch.tensor(b), squared=squared, nearest=nearest)
    for value, one_a, one_b in zip(values, a, b, strict=True):
        oracle = brute_force_chamfer(one_a, one_b, 2 if squared else 1)
        assert value.item() == pytest.approx(oracle, rel=1e-9)


def test_chamfer_finds_exact_neighbours_far_from_the_origin_and_in_chunks():
    generator = torch.Generator().manual_seed(0)
    a = 100 + 1e-3 * torch.rand(300, 3, generator=generator)  # where |a|^2 - 2ab + |b|^2 loses all digits
    b = 100 + 1e-3 * torch.rand(200, 3, generator=generator)
    pairwise = (a.double()[:, None] - b.double()[None]).square().sum(-1)
    for index in (metrics._nearest_cdist(a, b, chunk=64), metrics._nearest_kdtree(a, b)):
        found = pairwise.gather(1, index[:, None])[:, 0]  # ties may be broken either way
        torch.testing.assert_close(found, pairwise.amin(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("nearest", ["kdtree", "cdist"])
def test_chamfer_gradients(nearest):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.rand(9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: metrics.chamfer(a, b, nearest=nearest), (a, b))
    metrics.chamfer(a, a.detach(), nearest=nearest).backward()  # all distances 0
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_chamfer_of_shifted_grid_is_known():
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    assert metrics.chamfer(grid, grid).item() == 0
    assert metrics.chamfer(grid, grid + 0.1).item() == pytest.approx(2 * 0.1 * 3**0.5, rel=1e-4)
    assert metrics.chamfer(grid, grid + 0.1, squared=True).item() == pytest.approx(0.06, rel=1e-4)


# ----------------------------------------------------------------------------------- intervals


def test_bootstrap_agrees_with_scipy():
    scores = np.random.default_rng(1).normal(30, 2, 25)
    mean, low, high = metrics.bootstrap_ci(scores, np.random.default_rng(0))
    peer = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=10_000,
                           rng=np.random.default_rng(2)).confidence_interval
    assert mean == pytest.approx(scores.mean())
    assert low == pytest.approx(peer.low, abs=0.05) and high == pytest.approx(peer.high, abs=0.05)
    narrow = metrics.bootstrap_ci(scores, np.random.default_rng(0), level=0.5)
    assert low < narrow[1] < narrow[2] < high


def test_bootstrap_counts_seeds_as_chance():
    objects = np.random.default_rng(1).normal(0, 0.1, 30)
    seeds = np.array([-1.0, 0.0, 1.0])[:, None]
    one = metrics.bootstrap_ci(objects, np.random.default_rng(0))
    both = metrics.bootstrap_ci(objects + seeds, np.random.default_rng(0))
    assert both[0] == pytest.approx(one[0])
    assert both[2] - both[1] > 5 * (one[2] - one[1])
    assert metrics.bootstrap_ci(objects, np.random.default_rng(0)) == one  # same generator, same answer


# ------------------------------------------------------------------------------------ bad input


GOOD = torch.full((16, 16, 3), 0.5)


@pytest.mark.parametrize("score", [metrics.psnr, metrics.ssim, metrics.lpips])
@pytest.mark.parametrize(
    ("pred", "target", "error", "message"),
    [
        (np.zeros((40, 40, 3)), GOOD, TypeError, "pred: got ndarray"),
        (GOOD, (GOOD * 255).to(torch.uint8), TypeError, "target: got torch.uint8"),
        (GOOD[..., :2], GOOD, ValueError, r"pred: got shape \(16, 16, 2\)"),
        (GOOD, GOOD[0], ValueError, r"target: got shape \(16, 3\)"),
        (GOOD, GOOD * 3, ValueError, r"target: got values in \[1.5, 1.5\]"),
        (GOOD - 1, GOOD, ValueError, "pred: got values in"),
        (torch.where(GOOD > 0, torch.nan, GOOD), GOOD, ValueError, "pred: holds non-finite"),
        (GOOD, GOOD[:12], ValueError, r"pred: got shape \(16, 16, 3\), wanted that of target"),
    ],
)
def test_bad_images_are_named(score, pred, target, error, message):
    with pytest.raises(error, match=message):
        score(pred, target)


def test_other_bad_arguments_are_named():
    points = torch.zeros(4, 3)
    generator = np.random.default_rng(0)
    for call, error, message in [
        (lambda: metrics.ssim(GOOD[:, :8], GOOD[:, :8]), ValueError, "pred: got 16 x 8 pixels"),
        (lambda: metrics.ssim(GOOD, GOOD[:8], validate=False), ValueError, "pred: got shape"),
        (lambda: metrics.psnr(GOOD, GOOD, reduction="sum"), ValueError, "reduction: got 'sum'"),
        (lambda: metrics.chamfer(points.numpy(), points), TypeError, "a: got ndarray"),
        (lambda: metrics.chamfer(points, points[:0]), ValueError, "b: got shape"),
        (lambda: metrics.chamfer(points, points / 0), ValueError, "b: holds non-finite"),
        (lambda: metrics.chamfer(points, points[:, :2]), ValueError, "b: got shape"),
        (lambda: metrics.chamfer(points, points, nearest="ann"), ValueError, "nearest: got 'ann'"),
        (lambda: metrics.alpha_iou(GOOD, GOOD), ValueError, "pred: got shape"),
        (lambda: metrics.box_psnr(GOOD, GOOD, GOOD[:8, :, :1]), ValueError, "target_alpha: got"),
        (lambda: metrics.bootstrap_ci([], generator), ValueError, "values: got shape"),
        (lambda: metrics.bootstrap_ci([1, np.inf], generator), ValueError, "values: holds non-f"),
        (lambda: metrics.bootstrap_ci([1.0], 0), TypeError, "generator: got int"),
        (lambda: metrics.bootstrap_ci([1.0], generator, level=95), ValueError, "level: got 95"),
        (lambda: metrics.bootstrap_ci([1.0], generator, resamples=0), ValueError, "resamples: got 0"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_rounding_beyond_the_range_is_allowed_and_nothing_more():
    white = torch.ones(16, 16, 3)
    metrics.psnr(white + 5e-5, white - 5e-5), metrics.psnr(-5e-5 * white, white)
    for wrong in (1.001 * white, -0.001 * white, 1.05 * white):
        with pytest.raises(ValueError, match="pred: got values in"):
            metrics.psnr(wrong, white)


@pytest.mark.parametrize("nearest", ["kdtree", "cdist"])
def test_chamfer_of_no_pairs_is_empty(nearest):
    for lead in ((0,), (2, 0)):
        got = metrics.chamfer(torch.zeros(*lead, 5, 3), torch.zeros(*lead, 4, 3), nearest=nearest)
        assert got.shape == lead and got.dtype == torch.float32


def test_ssim_stays_out_of_half_precision():
    """Nearly flat pictures, where a variance in half precision falls below 0: the control does."""
    levels = torch.linspace(0.3, 0.9, 8)[:, None, None, None]
    a = levels + 0.002 * torch.randn(8, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    b = a + 0.001 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    wanted = metrics.ssim(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        found = metrics.ssim(a, b)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(wanted.item(), abs=1e-6)
    half = a.bfloat16(), b.bfloat16()
    assert metrics.ssim(*half).item() == pytest.approx(metrics.ssim(*(x.float() for x in half)).item(), abs=1e-6)
    squares = a.bfloat16().square().mean((1, 2)).float() - a.bfloat16().mean((1, 2)).float().square()
    assert squares.min() < 0
