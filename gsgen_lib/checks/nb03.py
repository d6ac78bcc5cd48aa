"""Checks of the exercises of notebook 03: score distillation, interval score matching, what random times seek, view shares."""

from __future__ import annotations

import torch

from gsgen_lib.checks import NotYet, expect_close, expect_letter, fresh_generator, shows


def _world():
    """(generator, abar (T,), a small network (x_t, t) -> (B, 3) with weights that notice a gradient)."""
    generator = fresh_generator()
    abar = torch.linspace(0.999, 0.02, 100, dtype=torch.float64)
    weight = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()

    def predict(x_t, t):
        return (x_t @ weight).tanh() + torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1) / 100

    return generator, abar, predict, weight


def exercise_1(distillation) -> None:
    """The loss of SDS with w = 1. Oracle: the formula of its gradient, in place of autograd."""
    generator, abar, predict, weight = _world()
    x, eps = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    t = torch.randint(10, 90, (5,), generator=generator)
    x.requires_grad_()
    loss = distillation(predict, x, t, eps, abar)
    if loss is None or not isinstance(loss, torch.Tensor) or loss.ndim:
        raise NotYet("wanted a scalar tensor, the loss: one number for the batch")
    if not loss.requires_grad:
        raise NotYet("the loss has no gradient: x itself must stay outside torch.no_grad()")
    loss.backward()
    if weight.grad is not None:
        raise NotYet("a gradient reaches the weights inside `predict`: ask it within torch.no_grad()")
    root = abar[t].sqrt()[:, None] * x.detach() + (1 - abar[t]).sqrt()[:, None] * eps
    wanted = (predict(root, t).detach() - eps) / 5
    hint = "the gradient is not (eps_hat - eps) / B"
    if shows(x.grad, -wanted):
        hint = "the sign: the target is x - g, so that a step down the loss goes along -g"
    elif shows(x.grad, 5 * wanted):
        hint = "divide by the number of renders, B"
    elif shows(x.grad, 2 * wanted):
        hint = "the derivative of a square brings a 2: take half of it"
    elif shows(x.grad, 0 * wanted):
        hint = "the gradient is 0: only the target is held fixed, not x"
    expect_close(x.grad, wanted, hint, tol=1e-8)


def exercise_2(interval_gradient) -> None:
    """One DDIM step and the difference of two answers. Oracle: the same in Python numbers."""
    generator, abar, predict, _ = _world()
    x_s = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    s = int(torch.randint(20, 50, (1,), generator=generator))
    t = s + 15
    asked = []

    def ask(x, step):
        asked.append(int(step))
        return (2 * predict(x, step) - 0.3).detach()

    def plain(x, step):
        return predict(x, step).detach()

    def wanted(a, b, sign=1.0):
        eps = plain(x_s, s)
        root_a, root_b = float(abar[a]) ** 0.5, float(abar[b]) ** 0.5
        x_t = root_b * (x_s - (1 - root_a**2) ** 0.5 * eps) / root_a + (1 - root_b**2) ** 0.5 * eps
        return sign * ((1 - root_b**2) ** 0.5 / root_b) * (2 * predict(x_t, t).detach() - 0.3 - eps)

    answer = interval_gradient(ask, plain, x_s, s, t, abar)
    hint = "guess x0 at s, mix it with the same noise at t, ask there, and subtract what `plain` said at s"
    if asked and asked[-1] != t:
        hint = f"`ask` was asked at step {asked[-1]}, wanted t = {t}: the caption speaks at the noisier end"
    elif shows(answer, wanted(s, t, -1.0)):
        hint = "the sign: with the caption minus without"
    elif shows(answer, wanted(s, t) * abar[t].sqrt() / (1 - abar[t]).sqrt()):
        hint = "the weight is missing"
    expect_close(answer, wanted(s, t), hint, tol=1e-8)


def exercise_3(prediction) -> None:
    """Which letter: what random times at high noise seek."""
    expect_letter(prediction, "b", "what do the arrows of section 1 aim at for t = 700, from wherever they start? Then run it")


def exercise_4(said_shares) -> None:
    """Hard view words for any azimuth. Oracle: the library's words, by their borders."""
    from gsgen_lib.data.captioned_views import view_word

    generator = fresh_generator()
    near = (torch.rand(40, generator=generator, dtype=torch.float64) * 360 - 180).tolist() + [0.0, -100.0, 180.0, -180.0]
    far = (torch.rand(40, generator=generator, dtype=torch.float64) * 1440 - 720).tolist() + [350.0, 540.0]
    for turn in near + far:  # if those that need no turning pass, it is the turning that is wrong
        word = view_word(turn, 0.0)
        wanted = [float(word == name) for name in ("front view", "side view", "back view")]
        answer = said_shares(turn)
        hint = f"azimuth {turn:.0f} is a {word}"
        if shows(answer, [0.0, 1.0, 0.0]) and word == "back view":
            hint += ": can your third share ever be 1?"
        elif turn in far:
            hint += ": bring the angle into -180 ... 180 first"
        expect_close(answer, wanted, hint, tol=1e-9)


def _right(predict, x, t, eps, abar):
    a = abar[t][:, None]
    with torch.no_grad():
        g = predict(a.sqrt() * x + (1 - a).sqrt() * eps, t) - eps
    return 0.5 * (x - (x - g).detach()).square().sum() / len(x)


def _through_the_network(predict, x, t, eps, abar):
    a = abar[t][:, None]
    return (predict(a.sqrt() * x + (1 - a).sqrt() * eps, t) - eps).square().sum() / len(x)


def _uphill(predict, x, t, eps, abar):
    return -_right(predict, x, t, eps, abar)


def _not_halved(predict, x, t, eps, abar):
    return 2 * _right(predict, x, t, eps, abar)


def _target_moves(predict, x, t, eps, abar):
    a = abar[t][:, None]
    with torch.no_grad():
        g = predict(a.sqrt() * x + (1 - a).sqrt() * eps, t) - eps
    return 0.5 * (x - (x - g)).square().sum() / len(x)


def _ism(ask, plain, x_s, s, t, abar):
    eps = plain(x_s, s)
    x0 = (x_s - (1 - abar[s]).sqrt() * eps) / abar[s].sqrt()
    return ((1 - abar[t]) / abar[t]).sqrt() * (ask(abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * eps, t) - eps)


def _ism_backwards(*args):
    return -_ism(*args)


def _asks_at_s(ask, plain, x_s, s, t, abar):
    return ((1 - abar[t]) / abar[t]).sqrt() * (ask(x_s, s) - plain(x_s, s))


def _no_step(ask, plain, x_s, s, t, abar):
    return ((1 - abar[t]) / abar[t]).sqrt() * (ask(x_s, t) - plain(x_s, s))


def _no_wrap(azimuth):
    turn = abs(azimuth)
    return [float(turn <= 45), float(45 < turn <= 135), float(turn > 135)]


def _no_back(azimuth):
    turn = abs((azimuth + 180) % 360 - 180)
    return [float(turn <= 45), float(turn > 45), 0.0]


WRONG = {
    "exercise_1": [(_through_the_network,), (_uphill,), (_not_halved,), (_target_moves,)],
    "exercise_2": [(_ism_backwards,), (_asks_at_s,), (_no_step,)],
    "exercise_3": [("a",), ("c",), (2,)],
    "exercise_4": [(_no_wrap,), (_no_back,)],
}
