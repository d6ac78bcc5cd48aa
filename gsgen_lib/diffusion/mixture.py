"""An exact denoiser: the data are a mixture of Gaussians, so every answer has a closed form.

Data:  p(x_0) = sum_k w_k N(m_k, s_k^2 I).  With x_t = alpha x_0 + sigma eps,

    p(x_t)         = sum_k w_k N(alpha m_k, c_k I),           c_k = alpha^2 s_k^2 + sigma^2
    p(k | x_t)     = softmax_k [ log w_k - D/2 log c_k - |x_t - alpha m_k|^2 / (2 c_k) ]
    E[x_0 | x_t]   = sum_k p(k | x_t) [ m_k + alpha s_k^2 / c_k (x_t - alpha m_k) ]
    score          = -sum_k p(k | x_t) (x_t - alpha m_k) / c_k,         E[eps | x_t] = -sigma score

(which equals (x_t - alpha E[x_0 | x_t]) / sigma, but keeps its digits at small sigma)
(alpha, sigma) = (sqrt(abar), sqrt(1 - abar)) in diffusion, (1 - t, t) in rectified flow. No network can
do better than this one, so a sampler that fails with it is wrong. The condition "component k carries
this label" leaves another mixture: `mixture.given(labels, label)`. Taught in notebook 02; oracle of the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsgen_lib.diffusion.gaussian import KINDS, spread

__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    """means (K, D); stds (K,) > 0 or 0 for points; weights (K,), positive, made to sum to 1.

    >>> two = GaussianMixture(torch.tensor([[-2.0], [2.0]]), torch.tensor([0.1, 0.1]), torch.tensor([1.0, 3.0]))
    >>> two.x0(torch.tensor([[0.9]]), alpha=0.5, sigma=0.5).round(decimals=3)  # 2 would noise to 1.0
    tensor([[1.9970]])
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self):
        K = len(self.means)
        if self.means.ndim != 2 or not K:
            raise ValueError(f"means: got shape {tuple(self.means.shape)}, wanted (K, D)")
        for name in ("stds", "weights"):
            value = getattr(self, name)
            if value.shape != (K,) or not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
                raise ValueError(f"{name}: got {value.tolist()}, wanted {K} finite numbers >= 0")
        if not self.weights.sum() > 0:
            raise ValueError("weights: got no positive weight")
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n points of the data distribution, (n, D); the generator lives on the CPU.

        >>> GaussianMixture(torch.zeros(1, 2), torch.zeros(1), torch.ones(1)).sample(3)
        tensor([[0., 0.],
                [0., 0.],
                [0., 0.]])
        """
        k = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator).to(self.means.device)
        noise = torch.randn(n, self.means.shape[1], generator=generator).to(self.means)
        return self.means[k] + self.stds[k, None] * noise

    def given(self, labels: Tensor, label: int) -> GaussianMixture:
        """The mixture of the components k with labels[k] == label; labels (K,), one for each component.

        >>> pair = GaussianMixture(torch.tensor([[0.0], [5.0]]), torch.ones(2), torch.ones(2))
        >>> pair.given(torch.tensor([0, 1]), 1).means
        tensor([[5.]])
        """
        if labels.shape != self.weights.shape:
            raise ValueError(f"labels: got shape {tuple(labels.shape)}, wanted {tuple(self.weights.shape)}")
        keep = labels == label
        if not bool(keep.any()):
            raise ValueError(f"label: got {label!r}, wanted one of {sorted(set(labels.tolist()))}")
        return GaussianMixture(self.means[keep], self.stds[keep], self.weights[keep])

    def _terms(self, x: Tensor, alpha, sigma):
        """x - alpha m_k (B, K, D), variances c_k (1 or B, K, 1), log p(k, x) up to a constant (B, K)."""
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise ValueError(f"x: got shape {tuple(x.shape)}, wanted (B, {self.means.shape[1]})")
        alpha, sigma = spread(alpha, x).reshape(-1, 1, 1), spread(sigma, x).reshape(-1, 1, 1)  # (1 or B, 1, 1)
        difference = x[:, None] - alpha * self.means
        variance = (alpha * self.stds[:, None]) ** 2 + sigma**2
        if not bool((variance > 0).all()):
            raise ValueError("sigma: got 0 where a component is a point, wanted > 0: there is no density")
        exponent = difference.square().sum(-1) / (2 * variance[..., 0])  # (B, K)
        log = self.weights.log() - 0.5 * x.shape[1] * variance[..., 0].log() - exponent
        return difference, variance, log

    def log_prob(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        """log p(x_t) (B,), of the data themselves by default; x (B, D).

        >>> one = GaussianMixture(torch.zeros(1, 1), torch.ones(1), torch.ones(1))
        >>> one.log_prob(torch.zeros(1, 1)).exp()  # 1 / sqrt(2 pi)
        tensor([0.3989])
        """
        _, _, log = self._terms(x, alpha, sigma)
        return torch.logsumexp(log, -1) - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def x0(self, x: Tensor, alpha, sigma) -> Tensor:
        """E[x_0 | x_t], (B, D); x (B, D), alpha and sigma one number or (B,)."""
        difference, variance, log = self._terms(x, alpha, sigma)
        gain = spread(alpha, x).reshape(-1, 1, 1) * self.stds[:, None] ** 2 / variance  # (1 or B, K, 1)
        return (torch.softmax(log, -1)[..., None] * (self.means + gain * difference)).sum(1)

    def eps(self, x: Tensor, alpha, sigma) -> Tensor:
        """E[eps | x_t], (B, D).

        >>> one = GaussianMixture(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))  # all data at the origin
        >>> one.eps(torch.tensor([[1.0]]), alpha=0.6, sigma=0.8)
        tensor([[1.2500]])
        """
        # from the score, not from (x - alpha x0) / sigma, which loses digits at small sigma
        return -spread(sigma, x) * self.score(x, alpha, sigma)

    def score(self, x: Tensor, alpha, sigma) -> Tensor:
        """grad log p(x_t), (B, D)."""
        difference, variance, log = self._terms(x, alpha, sigma)
        return -(torch.softmax(log, -1)[..., None] * difference / variance).sum(1)

    def velocity(self, x: Tensor, t) -> Tensor:
        """E[eps - x_0 | x_t] of rectified flow, (B, D); t in [0, 1], one number or (B,)."""
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        return self.eps(x, 1 - t, t) - self.x0(x, 1 - t, t)

    def denoiser(self, alphas_cumprod: Tensor, prediction: str = "eps"):
        """A function (x_t, t) -> prediction for the samplers, t an index into alphas_cumprod (T,).

        >>> one = GaussianMixture(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))
        >>> one.denoiser(torch.tensor([0.36]))(torch.tensor([[0.8]]), torch.tensor(0)).round(decimals=3)
        tensor([[1.]])
        """
        if prediction not in KINDS:
            raise ValueError(f"prediction: got {prediction!r}, wanted one of {', '.join(KINDS)}")

        def denoise(x: Tensor, t) -> Tensor:
            abar = alphas_cumprod.to(x.device, x.dtype)[t]
            alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
            if prediction == "v":
                return spread(alpha, x) * self.eps(x, alpha, sigma) - spread(sigma, x) * self.x0(x, alpha, sigma)
            return getattr(self, prediction)(x, alpha, sigma)

        return denoise
