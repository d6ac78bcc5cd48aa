"""Checks of the exercises of notebook 06: KL between two normals, the mean of other views, compression, a draw of a latent."""

from __future__ import annotations

import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def exercise_1(kl_between) -> None:
    """KL of normals. Oracle: torch.distributions."""
    generator = fresh_generator()
    m1, l1, m2, l2 = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(m1, (l1 / 2).exp()), normal(m2, (l2 / 2).exp()))
    answer = kl_between(m1, l1, m2, l2)
    hint = "start from the mean of log N(z; m1, s1) - log N(z; m2, s2) over z of the first: two logarithms, two mean squares"
    if shows(answer, torch.distributions.kl_divergence(normal(m2, (l2 / 2).exp()), normal(m1, (l1 / 2).exp()))):
        hint = "that is the KL the other way round: the variance that divides is that of the second cloud"
    elif shows(answer, 0.5 * (m1**2 + l1.exp() - 1 - l1)):
        hint = "that is the KL to N(0, 1): the second cloud is not asked"
    elif shows(answer, 2 * wanted):
        hint = "one half is missing"
    elif isinstance(answer, torch.Tensor) and not answer.ndim:
        raise NotYet("wanted one KL for each number, not their mean")
    expect_close(answer, wanted, hint, tol=1e-4)


def exercise_2(mean_of_others) -> None:
    """Means over other views. Oracle: a loop."""
    generator = fresh_generator()
    for views in (3, 1, 2):
        x = torch.randn(2 * views, 4, 2, 3, generator=generator)
        wanted = torch.zeros_like(x)
        for i in range(len(x)):
            rest = [x[j] for j in range(len(x)) if j // views == i // views and j != i]
            wanted[i] = sum(rest) / len(rest) if rest else 0
        answer = mean_of_others(x, views)
        if views == 1 and isinstance(answer, torch.Tensor) and not bool(answer.isfinite().all()):
            raise NotYet("with one view there are no others: zeros")
        hint = "views of one object follow each other; sum of all views, less the view itself, over V - 1"
        if shows(answer, x.unflatten(0, (2, views)).mean(1, keepdim=True).expand(-1, views, -1, -1, -1).flatten(0, 1)):
            hint = "that is the mean over all views: leave the own one out"
        elif views > 1 and shows(answer, wanted * (views - 1) / views):
            hint = "the others are one fewer than V: divide by V - 1"
        expect_close(answer, wanted, hint, tol=1e-4)


def exercise_3(prediction) -> None:
    """Which letter: compression at f = 16."""
    expect_letter(prediction, "b", "how many pixels does a cell cover now, and how many numbers does it hold?")


def exercise_4(draw_latent) -> None:
    """Noise of the right size, its own for each number. Oracle: statistics of 4,800 numbers."""
    generator = fresh_generator()
    mu, logvar = torch.randn(2, 5, 4, 6, 5, 8, generator=generator)
    answer = draw_latent(mu, logvar, generator)
    if not isinstance(answer, torch.Tensor) or answer.shape != mu.shape:
        got = tuple(getattr(answer, "shape", [])) or type(answer).__name__
        raise NotYet(f"wanted latents of shape {tuple(mu.shape)}, got {got}")
    noise = (answer - mu) / (0.5 * logvar).exp()  # standard normal
    if float(noise.std()) < 0.01:
        raise NotYet("there is no noise")
    for dim, what in enumerate(("scenes", "views", "channels", "rows", "columns")):
        a, b = noise.movedim(dim, 0)[:2].flatten(1)
        if float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.3:
            raise NotYet(f"two {what} get the same noise: how many numbers are drawn?")
    if abs(float(noise.mean())) > 0.15 or abs(float(noise.std()) - 1) > 0.15:
        raise NotYet("z = mu + sigma eps, and logvar is the logarithm of sigma squared")


def _right_kl(m1, l1, m2, l2):
    return 0.5 * (l2 - l1 + ((m1 - m2) ** 2 + l1.exp()) / l2.exp() - 1)


def _backwards(m1, l1, m2, l2):
    return _right_kl(m2, l2, m1, l1)


def _to_standard(m1, l1, m2, l2):
    return 0.5 * (m1**2 + l1.exp() - 1 - l1)


def _one_number(*args):
    return _right_kl(*args).mean()


def _all_views(x, views):
    return x.unflatten(0, (-1, views)).mean(1, keepdim=True).expand(-1, views, -1, -1, -1).flatten(0, 1)


def _over_v(x, views):
    y = x.unflatten(0, (-1, views))
    return ((y.sum(1, keepdim=True) - y) / views).flatten(0, 1)


def _variance(mu, logvar, generator):
    return mu + logvar.exp() * torch.randn(mu.shape, generator=generator)


def _shared(mu, logvar, generator):
    return mu + (0.5 * logvar).exp() * torch.randn(mu.shape[-2:], generator=generator)


def _one_for_all_scenes(mu, logvar, generator):
    return mu + (0.5 * logvar).exp() * torch.randn(mu.shape[1:], generator=generator)


def _no_noise(mu, logvar, generator):
    return mu


WRONG = {
    "exercise_1": [(_backwards,), (_to_standard,), (_one_number,)],
    "exercise_2": [(_all_views,), (_over_v,)],
    "exercise_3": [("a",), ("c",), (1,)],
    "exercise_4": [(_variance,), (_no_noise,), (_shared,), (_one_for_all_scenes,)],
}
