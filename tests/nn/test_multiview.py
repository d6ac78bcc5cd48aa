"""The attention across views against one written out, and what may and may not change what."""

import torch

from gsgen_lib.nn.multiview import HALF, CrossViewAttention, MultiViewUNet


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(module):
    """All weights drawn anew, so that nothing is 0 by initialisation."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=gen(p.numel())))
    return module.double()


def test_attention_across_views_equals_the_textbook():
    layer, x = awake(CrossViewAttention(8, 2)), torch.randn(6, 8, 3, 2, generator=gen(), dtype=torch.float64)
    found = layer(x, 3)
    normed = layer.norm(x)
    for b in range(2):
        tokens = torch.stack([normed[3 * b + v, :, i, j] for v in range(3) for i in range(3) for j in range(2)])  # (18, 8)
        q, k, v = layer.qkv(tokens).chunk(3, -1)
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            heads.append(torch.softmax(q[:, part] @ k[:, part].T / 2, -1) @ v[:, part])
        y = layer.out(torch.cat(heads, -1))
        for n, (v, i, j) in enumerate((v, i, j) for v in range(3) for i in range(3) for j in range(2)):
            torch.testing.assert_close(found[3 * b + v, :, i, j], x[3 * b + v, :, i, j] + HALF * y[n])


def test_views_of_an_object_talk_and_objects_do_not():
    unet, x = awake(MultiViewUNet(3, 2, (8, 16), (False, True), 1)), torch.randn(6, 3, 8, 8, generator=gen(), dtype=torch.float64)
    before, changed = unet(x, 3), x.clone()
    changed[1] += 1
    moved = (unet(changed, 3) - before).abs().amax((1, 2, 3))
    assert (moved[:3] > 1e-6).all() and (moved[3:] == 0).all()
    assert ((unet(changed, 1) - unet(x, 1)).abs().amax((1, 2, 3)) > 1e-9).tolist() == [False, True, False, False, False, False]


def test_the_order_of_views_is_kept():
    unet, x = awake(MultiViewUNet(3, 2, (8, 16), (False, True), 1)), torch.randn(3, 3, 8, 8, generator=gen(), dtype=torch.float64)
    torch.testing.assert_close(unet(x, 3)[[2, 0, 1]], unet(x[[2, 0, 1]], 3))
