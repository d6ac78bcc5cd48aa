"""A dense float64 rasterizer written separately from the library: every pixel against every Gaussian, no tiles.

Slow and plain on purpose. It shares no code with gsgen_lib: rotation matrices, projection, culling and compositing are
written again from the equations, with loops where loops are clearest.
"""

import torch

NEAR, FAR, EPS2D, ALPHA_MIN, MAX_ALPHA, T_MIN = 0.01, 1e10, 0.3, 1 / 255, 0.999, 1e-4


def render_one(means, quats, scales, opacities, rgb, viewmat, K, W, H, background=None, antialiased=False):
    """One view in float64, differentiable. Returns rgb (H, W, 3), alpha (H, W), depth sum (H, W), margin (H, W).

    margin: how close (relatively) any decision in this pixel came to tipping over: where it is tiny, engines in
    float32 may rightly decide otherwise, and the image jumps by up to 1/255.
    """
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    Rq = torch.stack([torch.stack([w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
                      torch.stack([2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)], -1),
                      torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z], -1)], -2)
    Sigma = Rq @ torch.diag_embed(scales ** 2) @ Rq.transpose(-1, -2)
    cam = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    ys, xs = torch.meshgrid(torch.arange(H, dtype=torch.float64) + 0.5, torch.arange(W, dtype=torch.float64) + 0.5,
                            indexing="ij")
    color, depth = torch.zeros(H, W, 3, dtype=torch.float64), torch.zeros(H, W, dtype=torch.float64)
    T, done = torch.ones(H, W, dtype=torch.float64), torch.zeros(H, W, dtype=torch.bool)
    margin = torch.full((H, W), float("inf"), dtype=torch.float64)
    for i in torch.argsort(cam[:, 2].detach(), stable=True).tolist():
        X, Y, Z = cam[i]
        if not NEAR <= Z.item() <= FAR:
            continue
        lim = lambda r, c, f, size: torch.clamp(r, -(c / f + 0.15 * size / f), (size - c) / f + 0.15 * size / f)
        rx, ry = lim(X / Z, cx, fx, W), lim(Y / Z, cy, fy, H)
        zero = torch.zeros_like(Z)
        J = torch.stack([torch.stack([fx / Z, zero, -fx * rx / Z]), torch.stack([zero, fy / Z, -fy * ry / Z])])
        M = J @ viewmat[:3, :3]
        cov0 = M @ Sigma[i] @ M.T
        cov = cov0 + EPS2D * torch.eye(2, dtype=torch.float64)
        o = opacities[i]
        if antialiased:
            d0 = torch.det(cov0)
            o = o * torch.sqrt(d0 / torch.det(cov)) if d0 > 0 else o * 0
        inv = torch.linalg.inv(cov)
        dx, dy = xs - (fx * X / Z + cx), ys - (fy * Y / Z + cy)
        sigma = 0.5 * (inv[0, 0] * dx * dx + inv[1, 1] * dy * dy) + inv[0, 1] * dx * dy
        a = o * torch.exp(-sigma)
        with torch.no_grad():
            live = ~done
            after = T * (1 - a.clamp_max(MAX_ALPHA))
            near_skip = torch.where(live, (a / ALPHA_MIN - 1).abs(), margin)
            near_stop = torch.where(live & (a >= ALPHA_MIN), (after / T_MIN - 1).abs(), margin)
            near_max = torch.where(live, (a / MAX_ALPHA - 1).abs(), margin)
            margin = torch.minimum(margin, torch.minimum(torch.minimum(near_skip, near_stop), near_max))
        alpha = torch.where(a > MAX_ALPHA, torch.full_like(a, MAX_ALPHA), a)
        hit = (alpha >= ALPHA_MIN) & ~done
        stops = hit & (T * (1 - alpha) <= T_MIN)
        done = done | stops
        use = hit & ~stops
        weight = torch.where(use, T * alpha, torch.zeros_like(T))
        color = color + weight[..., None] * rgb[i]
        depth = depth + weight * Z
        T = torch.where(use, T * (1 - alpha), T)
    if background is not None:
        color = color + T[..., None] * background
    return color, 1 - T, depth, margin
