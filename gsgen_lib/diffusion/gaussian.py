"""The Gaussian diffusion process: noising, and the four names of one prediction.

    x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps                                  (noising, `q_sample`)
    v   = sqrt(abar) eps - sqrt(1 - abar) x_0                                  (velocity of the rotation, `velocity`)
    score = grad log q(x_t) = -eps / sqrt(1 - abar)                            (in expectation)

A network may predict eps, x0, v or the score: given x_t and abar each determines the others
(`convert`), since (x_t, v) is (x_0, eps) rotated by the angle whose cosine is sqrt(abar):

    x_0 = sqrt(abar) x_t - sqrt(1 - abar) v,     eps = sqrt(1 - abar) x_t + sqrt(abar) v

The choice changes which errors training minds, not what can be expressed.

`abar` is a number, a 0-d tensor, or one number per item of the batch, (B,); x are (B, ...), any
shape after B. Sources: DDPM (2006.11239) eq. 4; v: progressive distillation (2202.00512) section 4;
score: Song et al. (2011.13456) section 3. Taught in notebook 02.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KINDS", "checked_abar", "convert", "q_sample", "spread", "velocity"]

KINDS = ("eps", "x0", "v", "score")


def spread(values, like: Tensor) -> Tensor:
    """A number, or (B,) numbers, shaped to multiply `like` (B, ...), which must hold floating-point numbers.

    >>> spread(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    if not like.is_floating_point():
        raise ValueError(f"x: got dtype {like.dtype}, wanted floating point")
    values = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if values.ndim == 0:
        return values
    if values.ndim != 1 or not like.ndim or len(values) not in (1, len(like)):
        raise ValueError(f"values: got shape {tuple(values.shape)}, wanted one number, or one for each of the "
                         f"batch {tuple(like.shape[:1])}")
    return values.reshape(-1, *[1] * (like.ndim - 1))


def checked_abar(abar, like: Tensor) -> Tensor:
    """abar as a tensor on the device of `like`, in its precision but at least float32; ValueError outside [0, 1].

    Half precision rounds 0.9999 to 1, so square roots and differences of abar are taken before its
    results are cast to the precision of the data.

    >>> checked_abar(0.9999, torch.zeros(2, dtype=torch.bfloat16))
    tensor(0.9999)
    """
    abar = torch.as_tensor(abar, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if not bool(((abar >= 0) & (abar <= 1)).all()):
        raise ValueError(f"abar: got {abar.flatten().tolist()[:4]}, wanted numbers in [0, 1]")
    return abar


def q_sample(x0: Tensor, eps: Tensor, abar) -> Tensor:
    """Noised data x_t = sqrt(abar) x0 + sqrt(1 - abar) eps; x0, eps (B, ...), abar in [0, 1].

    >>> q_sample(torch.ones(1, 2), torch.zeros(1, 2), 0.25)
    tensor([[0.5000, 0.5000]])
    """
    if x0.shape != eps.shape:
        raise ValueError(f"eps: got shape {tuple(eps.shape)}, wanted that of x0, {tuple(x0.shape)}")
    signal, noise = _signal_and_noise(abar, x0)
    return signal * x0 + noise * eps


def velocity(x0: Tensor, eps: Tensor, abar) -> Tensor:
    """What a v-predicting network learns: v = sqrt(abar) eps - sqrt(1 - abar) x0; arguments as in `q_sample`.

    >>> velocity(torch.ones(1, 2), torch.zeros(1, 2), 0.75)
    tensor([[-0.5000, -0.5000]])
    """
    return q_sample(eps, -x0, abar)  # x_t of the pair turned by a right angle


def convert(prediction: Tensor, x_t: Tensor, abar, source: str, target: str) -> Tensor:
    """Turn a prediction of `source` into one of `target`, both of "eps", "x0", "v", "score".

    prediction, x_t: (B, ...). Raises ValueError where the answer does not exist: at abar = 0 (no
    signal left) x0 and v from eps or score; at abar = 1 (no noise) eps and v from x0, and any score.

    >>> x0, eps, abar = torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.36
    >>> x_t = q_sample(x0, eps, abar)  # 0.6 * 2 + 0.8 * 1
    >>> convert(eps, x_t, abar, "eps", "x0").item(), convert(x0, x_t, abar, "x0", "v").item()
    (2.0, -1.0)
    """
    for name, kind in (("source", source), ("target", target)):
        if kind not in KINDS:
            raise ValueError(f"{name}: got {kind!r}, wanted one of {', '.join(KINDS)}")
    if prediction.shape != x_t.shape:
        raise ValueError(f"prediction: got shape {tuple(prediction.shape)}, wanted that of x_t, {tuple(x_t.shape)}")
    signal, noise = _signal_and_noise(abar, x_t)
    if source == target:
        return prediction
    if source == "score":  # eps in another unit
        return convert(-noise * prediction, x_t, abar, "eps", target)
    if target == "score":
        return -convert(prediction, x_t, abar, source, "eps") / _not_zero(noise, target, "no noise at abar = 1")
    if source == "v":
        return signal * x_t - noise * prediction if target == "x0" else noise * x_t + signal * prediction
    if source == "eps":
        x0 = (x_t - noise * prediction) / _not_zero(signal, target, "no signal at abar = 0")
        return x0 if target == "x0" else signal * prediction - noise * x0
    eps = (x_t - signal * prediction) / _not_zero(noise, target, "no noise at abar = 1")  # source is x0
    return eps if target == "eps" else signal * eps - noise * prediction


def _signal_and_noise(abar, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar) and sqrt(1 - abar), shaped to multiply `like`."""
    abar = checked_abar(abar, like)
    return spread(abar.sqrt(), like), spread((1 - abar).sqrt(), like)


def _not_zero(divisor: Tensor, target: str, why: str) -> Tensor:
    if bool((divisor == 0).any()):
        raise ValueError(f"target: {target} is not determined here: {why}")
    return divisor
