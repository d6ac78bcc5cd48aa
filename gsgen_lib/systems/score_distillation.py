"""Score distillation: a denoiser that knows pictures corrects anything that can be rendered to a picture.

Problem. A denoiser can sample pictures; we want parameters theta whose render x(theta) looks like such a picture.
Noise the render, ask for the noise, and move the render against the error of the answer (SDS):

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps,     grad_x = w(t) (eps_hat(x_t, t) - eps)

eps_hat = `predict(x_t, t)`, guided or not; w = `weight`. The gradient stops there: the Jacobian of the network is left
out, so this is not the gradient of |eps_hat - eps|^2. As a loss with exactly this gradient, for batches of B,

    target = x - grad_x, held fixed,      loss = |x - target|^2 / (2 B)

Averaged over eps, a step along -grad_x climbs the mean log density of noised data: it seeks modes, where sampling covers them. t
is drawn at random (`random_time`), or falls from noisy to clean (`annealed_time`): form comes first and detail last.

ISM asks for less: invert x without randomness to x_s (DDIM, no caption), go one more step to x_t, and compare what
the network says with the caption at t to what it said without at s:

    grad_x = w(t) [ eps_hat(x_t, t, caption) - eps_hat(x_s, s, "") ],        t = s + interval

so the target no longer trembles with eps. A caption does not say from where the render was made. So it is joined by a
view word, or by a smooth mixture of the features of several (`ViewPrompts`); else every side becomes a front (Janus). Guidance
makes all words louder at once. The view word alone is made louder by the difference to the same caption with other view words,

    eps_hat = eps(empty) + s (eps(text) - eps(empty)) + a (eps(text) - eps(other views))              `view_guided`

Sources: SDS: DreamFusion (2209.14988) eq. 3, view words section 3.2; annealing: DreamGaussian (2309.16653) section 3.1;
ISM: LucidDreamer (2311.11284) eq. 16, 17; sets of views: MVDream (2308.16512) section 3.2; other views as negative prompts, there
with a projection: Perp-Neg (2304.04968). Taught in notebook 03.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from gsgen_lib.data.captioned_views import OVERHEAD, VIEW_WORDS
from gsgen_lib.diffusion import contrasted, convert, ddim_step, q_sample
from gsgen_lib.diffusion.gaussian import spread

__all__ = ["WEIGHTS", "ViewPrompts", "annealed_time", "distillation_loss", "ism_gradient", "ism_loss", "random_time",
           "sds_gradient", "sds_loss", "view_guided", "view_shares"]

WEIGHTS = {
    "sigma2": lambda abar: 1 - abar,  # DreamFusion: small at the clean end
    "one": lambda abar: torch.ones_like(abar),
    "sigma": lambda abar: (1 - abar).sqrt(),
    "x0": lambda abar: ((1 - abar) / abar).sqrt(),  # the step that goes all the way to the guess of x_0
}


def distillation_loss(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to x (B, ...) is gradient / B, and that touches nothing else.

    >>> x = torch.zeros(2, 3, requires_grad=True)
    >>> distillation_loss(x, torch.ones(2, 3)).backward()
    >>> x.grad[0]
    tensor([0.5000, 0.5000, 0.5000])
    """
    if gradient.shape != x.shape:
        raise ValueError(f"gradient: got shape {tuple(gradient.shape)}, wanted that of x, {tuple(x.shape)}")
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().sum() / len(x)


def sds_gradient(predict: Callable, x: Tensor, t: Tensor, eps: Tensor, alphas_cumprod: Tensor, weight: str = "sigma2") -> Tensor:
    """w(t) (eps_hat - eps), (B, ...), without graph.

    predict(x_t, t) -> eps_hat (B, ...), guided if wanted; x, eps (B, ...); t: one step or (B,), 0 ... T - 1; alphas_cumprod
    (T,); weight: a key of WEIGHTS. ValueError for another weight or shape, and for a t at which no signal is left.

    >>> abar = torch.tensor([0.36])
    >>> eps = torch.tensor([[1.0]])
    >>> sds_gradient(lambda x_t, t: x_t, torch.tensor([[2.0]]), torch.tensor(0), eps, abar)  # 0.64 * (0.6 * 2 + 0.8 - 1)
    tensor([[0.6400]])
    """
    if weight not in WEIGHTS:
        raise ValueError(f"weight: got {weight!r}, wanted one of {', '.join(WEIGHTS)}")
    abar = _signal_left(alphas_cumprod, t, x)
    with torch.no_grad():
        x_t = q_sample(x.detach(), eps, abar)
        return spread(WEIGHTS[weight](abar), x) * (_answer(predict, x_t, t) - eps)


def sds_loss(predict: Callable, x: Tensor, t: Tensor, eps: Tensor, alphas_cumprod: Tensor, weight: str = "sigma2") -> Tensor:
    """A scalar whose gradient with respect to x is `sds_gradient` / B; arguments as there.

    >>> x = torch.tensor([[2.0]], requires_grad=True)
    >>> sds_loss(lambda x_t, t: x_t, x, torch.tensor(0), torch.tensor([[1.0]]), torch.tensor([0.36])).backward()
    >>> x.grad
    tensor([[0.6400]])
    """
    return distillation_loss(x, sds_gradient(predict, x, t, eps, alphas_cumprod, weight))


def ism_gradient(predict: Callable, plain: Callable, x: Tensor, t: int, interval: int, alphas_cumprod: Tensor,
                 inversion_steps: int = 4, weight: str = "x0") -> Tensor:
    """w(t) [ predict(x_t, t) - plain(x_s, s) ], (B, ...), without graph; s = t - interval.

    predict, plain: (x_t, t) -> eps_hat with the caption (guided) and without. x (B, ...) is inverted to x_s in
    `inversion_steps` steps of DDIM with `plain`, and from there to x_t in one. ValueError unless 0 < interval <= t.

    >>> abar = torch.linspace(0.99, 0.01, 100)
    >>> same = lambda x_t, t: x_t * 0 + 1
    >>> ism_gradient(same, same, torch.randn(2, 3), 50, 10, abar).abs().max()  # nothing to say with the caption
    tensor(0.)
    """
    if not 0 < interval <= t < len(alphas_cumprod):
        raise ValueError(f"interval, t: got {interval}, {t}, wanted 0 < interval <= t < {len(alphas_cumprod)}")
    if inversion_steps < 1:
        raise ValueError(f"inversion_steps: got {inversion_steps}, wanted >= 1")
    if weight not in WEIGHTS:
        raise ValueError(f"weight: got {weight!r}, wanted one of {', '.join(WEIGHTS)}")
    _signal_left(alphas_cumprod, torch.tensor(t), x)
    s = t - interval
    stops = torch.linspace(0, s, inversion_steps + 1).round().long().unique().tolist()  # 0 ... s

    def onwards(x_a, eps_hat, a, b):
        """DDIM from level a to the noisier level b."""
        clean = x_a if a == 1 else convert(eps_hat, x_a, a, "eps", "x0")
        return ddim_step(x_a, clean, eps_hat, a, b)

    with torch.no_grad():
        x_s, level = x.detach(), torch.ones(())  # the clean end, where the network is asked at t = 0
        for now, stop in pairwise(stops):
            eps_hat = _answer(plain, x_s, torch.tensor(now))
            x_s, level = onwards(x_s, eps_hat, level, alphas_cumprod[stop]), alphas_cumprod[stop]
        eps_s = _answer(plain, x_s, torch.tensor(s))
        x_t = onwards(x_s, eps_s, level, alphas_cumprod[t])
        return spread(WEIGHTS[weight](alphas_cumprod[t].to(x)), x) * (_answer(predict, x_t, torch.tensor(t)) - eps_s)


def ism_loss(predict: Callable, plain: Callable, x: Tensor, t: int, interval: int, alphas_cumprod: Tensor,
             inversion_steps: int = 4, weight: str = "x0") -> Tensor:
    """A scalar whose gradient with respect to x is `ism_gradient` / B; arguments as there."""
    return distillation_loss(x, ism_gradient(predict, plain, x, t, interval, alphas_cumprod, inversion_steps, weight))


def random_time(count: int, generator: torch.Generator, low: int = 20, high: int = 980) -> Tensor:
    """`count` steps, uniform in low ... high - 1 (the end is left out, as in range); (count,) int64.

    >>> random_time(1000, torch.Generator().manual_seed(0)).min() >= 20
    tensor(True)
    """
    if not 0 <= low < high:
        raise ValueError(f"low, high: got {low}, {high}, wanted 0 <= low < high")
    return torch.randint(low, high, (count,), generator=generator)


def annealed_time(step: int, steps: int, low: int = 20, high: int = 980, train_steps: int = 1000) -> int:
    """The noise level of one step of `steps` (DreamGaussian): (1 - step / steps) T, clipped to low ... high.

    >>> [annealed_time(s, 100) for s in (0, 1, 50, 99)]
    [980, 980, 500, 20]
    """
    if not 0 <= step < steps:
        raise ValueError(f"step: got {step}, wanted 0 to {steps - 1}")
    if not 0 <= low <= high < train_steps:
        raise ValueError(f"low, high: got {low}, {high}, wanted 0 <= low <= high < {train_steps}")
    return max(low, min(high, round((1 - step / steps) * train_steps)))


def view_shares(azimuth: float, elevation: float, width: float = 30.0) -> list[float]:
    """How much of each of VIEW_WORDS a direction (degrees) is; they add up to 1.

    Between two words there is a band of `width` degrees in which the share goes over linearly; width 0 gives the hard
    words of `view_word`. ValueError for a width outside 0 ... 60: beyond, the pole itself would not be wholly overhead.

    >>> view_shares(0, 0), view_shares(45, 0), view_shares(180, 90)
    ([1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0])
    """
    if not 0 <= width <= 60:
        raise ValueError(f"width: got {width}, wanted 0 to 60 degrees")
    if not (math.isfinite(azimuth) and math.isfinite(elevation)):
        raise ValueError(f"azimuth, elevation: got {azimuth}, {elevation}, wanted degrees")

    def beyond(angle: float, border: float) -> float:
        """0 below the band around the border, 1 above it."""
        if width == 0:
            return float(angle > border)
        return min(1.0, max(0.0, (angle - border) / width + 0.5))

    turn = abs((azimuth + 180) % 360 - 180)  # 0 front ... 180 back
    above = beyond(elevation, OVERHEAD)
    side, back = beyond(turn, 45.0), beyond(turn, 135.0)
    return [(1 - above) * (1 - side), (1 - above) * (side - back), (1 - above) * back, above]


class ViewPrompts:
    """The features of a caption seen from a direction: those of its four view words, mixed by `view_shares`.

    prior: a `Prior`; caption: without view word. One encoding serves a whole optimisation.
    """

    def __init__(self, prior, caption: str, width: float = 30.0):
        self.features = prior.encode_prompt([f"{caption}, {word}" for word in VIEW_WORDS])  # (4, L, D)
        if any(torch.equal(self.features[0], other) for other in self.features[1:]):
            raise ValueError(f"caption: {caption!r} is so long that the prior's {self.features.shape[1]} tokens have no room "
                             "for the view word")
        self.plain = prior.encode_prompt([caption])  # (1, L, D), for comparison: no view word
        self.empty = prior.encode_prompt([""])
        self.width = width

    def __call__(self, azimuths: list[float], elevations: list[float]) -> Tensor:
        """Features (B, L, D) for B directions in degrees."""
        shares = torch.tensor([view_shares(a, e, self.width) for a, e in zip(azimuths, elevations, strict=True)])
        return torch.einsum("bw,wld->bld", shares.to(self.features), self.features)


def view_guided(model: Callable, text: Tensor, words: Tensor, empty: Tensor, guidance_scale: float,
                view_guidance: float) -> Callable:
    """A denoiser (x_t, t) -> eps_hat of the header's last formula: s = guidance_scale, a = view_guidance.

    model(x_t, t, features); text (B, L, D): features asked for, mixtures of words (W, L, D), those of the caption with each view
    word; "other views" are the W words less what `text` holds, their mean; empty (1, L, D). t: one, or (B,).

    >>> model = lambda x, t, c: x * 0 + c[:, :, 0]
    >>> front_and_back, empty = torch.tensor([[[3.0]], [[1.0]]]), torch.zeros(1, 1, 1)
    >>> view_guided(model, front_and_back[:1], front_and_back, empty, 2.0, 10.0)(torch.zeros(1, 1), 5)  # 2 * 3 + 10 * (3 - 1)
    tensor([[26.]])
    """
    if len(words) < 2 or text.shape[1:] != words.shape[1:]:
        raise ValueError(f"words: got shape {tuple(words.shape)}, wanted 2 or more of {tuple(text.shape[1:])}, as in text")
    others = (words.sum(0) - text) / (len(words) - 1)
    return contrasted(model, text, empty.expand_as(text), others, guidance_scale, view_guidance)


def _answer(predict: Callable, x_t: Tensor, t: Tensor) -> Tensor:
    """predict(x_t, t); ValueError where it is of another shape, which subtraction would spread silently."""
    eps_hat = predict(x_t, t)
    if eps_hat.shape != x_t.shape:
        raise ValueError(f"predict: got shape {tuple(eps_hat.shape)} back, wanted that of x_t, {tuple(x_t.shape)}")
    return eps_hat


def _signal_left(alphas_cumprod: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """abar_t, on the device of x; ValueError where it is 0, or t no step of the schedule."""
    t = torch.as_tensor(t)
    if t.is_floating_point() or t.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(f"t: got {tuple(t.shape)} of {t.dtype}, wanted one whole number, or {len(x)}")
    if bool(((t < 0) | (t >= len(alphas_cumprod))).any()):
        raise ValueError(f"t: got {t.flatten().tolist()[:4]}, wanted 0 to {len(alphas_cumprod) - 1}")
    abar = alphas_cumprod.to(x.device)[t.to(x.device)]
    if not bool((abar > 0).all()):
        raise ValueError(f"t: got {torch.as_tensor(t).flatten().tolist()[:4]}, where no signal is left; wanted an earlier one")
    return abar.to(torch.promote_types(x.dtype, torch.float32))
