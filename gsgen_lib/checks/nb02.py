"""Checks of the exercises of notebook 02: four functions, the exact denoiser, guidance, a sampler."""

from __future__ import annotations

import math

import torch

from gsgen_lib.checks import expect_close, expect_letter, fresh_generator, shows


def exercise_1(noised, one_ddim_step, straight_error, steered) -> None:
    """Noising, a DDIM step, the flow loss and guidance. Oracle: the library's, themselves equal to diffusers'."""
    from gsgen_lib.diffusion import convert, ddim_step, flow_loss, guide, q_sample

    generator = fresh_generator()
    x, y = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    share = 0.1 + 0.8 * torch.rand(5, generator=generator, dtype=torch.float64)

    hint = "noised: are both shares square roots, and do they add up to 1 when squared?"
    answer = noised(x, y, share)
    if shows(answer, q_sample(y, x, share)):
        hint = "noised: data and noise have changed places"
    expect_close(answer, q_sample(x, y, share), hint, tol=1e-6)

    t, s = share.min(), share.max()  # s is the cleaner one
    x0_hat = convert(y, x, t, "eps", "x0")
    hint = "one_ddim_step: guess x0 at abar_t first, then mix it with the same noise at abar_s"
    answer = one_ddim_step(x, y, t, s)
    if shows(answer, q_sample(x0_hat, y, t)):
        hint = "one_ddim_step: that is x_t again; the new mixture uses abar_s"
    expect_close(answer, ddim_step(x, x0_hat, y, t, s), hint, tol=1e-6)

    def velocity(x_t, t):
        return (x_t * t[:, None]).sin()

    hint = "straight_error: t = 0 is the data and t = 1 the noise; the road runs along eps - x0; mean over D"
    answer = straight_error(velocity, x, share, y)
    if shows(answer, flow_loss(lambda x_t, t: -velocity(x_t, t), x, share, y)):
        hint = "straight_error: the sign of the velocity: d x_t / dt = eps - x0"
    expect_close(answer, flow_loss(velocity, x, share, y), hint, tol=1e-6)

    scale = 2.0 + float(share[0])
    hint = "steered: start at uncond, and go scale times the way to cond"
    answer = steered(x, y, scale)
    if shows(answer, guide(x, y, scale + 1)):
        hint = "steered: that is the convention c + s (c - u); ours is u + s (c - u), whose s is larger by one"
    expect_close(answer, guide(x, y, scale), hint, tol=1e-6)


def exercise_2(posterior_mean) -> None:
    """E[x_0 | x_t] for K equally likely points (K, D). Oracle: Bayes' rule in Python numbers."""
    generator = fresh_generator()
    data, x_t = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (5, 3))
    abar = 0.3 + 0.4 * torch.rand((), generator=generator, dtype=torch.float64)
    wanted = []
    for x in x_t.tolist():
        likely = [math.exp(-sum((a - math.sqrt(abar) * m) ** 2 for a, m in zip(x, point, strict=True)) / (2 * (1 - abar)))
                  for point in data.tolist()]
        wanted.append([sum(w * point[d] for w, point in zip(likely, data.tolist(), strict=True)) / sum(likely) for d in (0, 1)])
    answer = posterior_mean(x_t, data, abar)
    hint = "which points could have led to x_t, and how likely is each? p(x_t | point) is a normal distribution"
    for mistake, name in USUAL.items():
        if shows(answer, mistake(x_t, data, abar)):
            hint = name
    expect_close(answer, wanted, hint, tol=1e-6)


def exercise_3(prediction) -> None:
    """Which letter: guidance of negative scale."""
    expect_letter(prediction, "b", "put -2 into u + s (c - u): towards what do you step, and away from what? Then run it")


def exercise_4(my_sampler) -> None:
    """DDIM over given times. Oracle: the library's, itself equal to diffusers', on an exact denoiser."""
    from gsgen_lib.diffusion import GaussianMixture, ddim_sample, timesteps

    generator = fresh_generator()
    data = GaussianMixture(torch.randn(3, 2, generator=generator, dtype=torch.float64), torch.full((3,), 0.2).double(),
                           torch.ones(3).double())
    abar = torch.linspace(0.999, 0.01, 200, dtype=torch.float64)
    noise = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    asked, exact = [], data.denoiser(abar)

    def denoise(x, t):
        asked.append(int(t))
        return exact(x, t)

    times = timesteps(200, 10).tolist()
    answer = my_sampler(denoise, noise, abar, times)
    hint = "asked at the right times, and yet another result: look at the last step, which goes to abar = 1"
    if asked == times[:-1]:
        hint = "the last step is missing, the one from the last time to the clean end"
    elif asked != times:
        hint = f"the denoiser was asked at {asked[:3]}..., while x stands at {times[:3]}..."
    expect_close(answer, ddim_sample(exact, noise, abar, 10), hint, tol=1e-6)


def _noised(x0, eps, abar):
    return abar.sqrt()[:, None] * x0 + (1 - abar).sqrt()[:, None] * eps


def _no_roots(x0, eps, abar):
    return abar[:, None] * x0 + (1 - abar)[:, None] * eps


def _ddim(x, eps, a, b):
    return b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps


def _same_level(x, eps, a, b):
    return _ddim(x, eps, a, a)


def _straight(velocity, x0, t, eps):
    return (velocity((1 - t)[:, None] * x0 + t[:, None] * eps, t) - (eps - x0)).square().mean(1)


def _backwards(velocity, x0, t, eps):
    return (velocity((1 - t)[:, None] * x0 + t[:, None] * eps, t) + (eps - x0)).square().mean(1)


def _guided(u, c, s):
    return u + s * (c - u)


def _other_convention(u, c, s):
    return c + s * (c - u)


def _not_scaled(x_t, data, abar):
    return torch.softmax(-(x_t[:, None] - data).square().sum(-1) / (2 * (1 - abar)), 1) @ data


def _nearest(x_t, data, abar):
    return data[(x_t[:, None] - abar.sqrt() * data).square().sum(-1).argmin(1)]


def _plain_mean(x_t, data, abar):
    return data.mean(0).expand(len(x_t), 2)


def _off_by_one(denoise, noise, abar, times):
    x = noise
    for i, t in enumerate(times):
        a, b = abar[t], abar[times[i + 1]] if i + 1 < len(times) else torch.ones_like(abar[0])
        eps = denoise(x, torch.tensor(times[max(i - 1, 0)]))
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    return x


def _stops_early(denoise, noise, abar, times):
    x = noise
    for t, s in zip(times[:-1], times[1:], strict=True):
        a, b, eps = abar[t], abar[s], denoise(x, torch.tensor(t))
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    return x


USUAL = {  # usual mistakes of exercise 2
    _not_scaled: "the data were shrunk by sqrt(abar) before noise was added: compare x_t with the shrunk points",
    _nearest: "that is the most likely point; the mean weighs all of them",
    _plain_mean: "that is the mean before seeing x_t",
}
WRONG = {
    "exercise_1": [(_no_roots, _ddim, _straight, _guided), (_noised, _same_level, _straight, _guided),
                   (_noised, _ddim, _backwards, _guided), (_noised, _ddim, _straight, _other_convention)],
    "exercise_2": [(mistake,) for mistake in USUAL],
    "exercise_3": [("a",), ("c",), (2,)],
    "exercise_4": [(_off_by_one,), (_stops_early,)],
}
