"""Packed tokens against objects one by one, and cells of voxels against loops."""

import pytest
import torch

from gsgen_lib.nn.packed import PackedBlock, attend_packed, of_each, place_waves
from gsgen_lib.nn.sparse_grid import Voxels


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def opened(block):
    """With gates and looks that say something."""
    for name, weight in block.named_parameters():
        torch.nn.init.normal_(weight, 0.0, 0.3, generator=gen(len(name)))
    return block.double()


def test_attention_is_softmax_of_products_for_each_object():
    q, k, v = (torch.randn(n, 6, generator=gen(n), dtype=torch.float64) for n in (5, 7, 8))
    v = v[:7]
    found = attend_packed(q, k, v, 2, (2, 3), (4, 3))
    for rows, others in ((slice(0, 2), slice(0, 4)), (slice(2, 5), slice(4, 7))):
        for h in (slice(0, 3), slice(3, 6)):
            weights = torch.softmax(q[rows, h] @ k[others, h].T / 3**0.5, -1)
            torch.testing.assert_close(found[rows, h], weights @ v[others, h])


@pytest.mark.parametrize(("embed", "context"), [(0, 0), (4, 0), (4, 6)])
def test_a_batch_is_its_objects_one_by_one(embed, context):
    block, lengths, others = opened(PackedBlock(8, 2, embed, context)), (3, 1, 4), (2, 2, 2)
    x = torch.randn(8, 8, generator=gen(1), dtype=torch.float64)
    e, words = (torch.randn(n, w, generator=gen(w), dtype=torch.float64) for n, w in ((3, 4), (6, 6)))
    together = block(x, lengths, e if embed else None, words if context else None, others if context else None)
    alone = [block(part, (len(part),), e[i:i + 1] if embed else None, words[2 * i:2 * i + 2] if context else None,
                   (2,) if context else None) for i, part in enumerate(x.split(lengths))]
    torch.testing.assert_close(together, torch.cat(alone))
    as_one = block(x, (8,), e[:1] if embed else None, words if context else None, (6,) if context else None)
    assert (as_one - together).abs().max() > 1e-3  # the control: where they hear each other


def test_gates_shift_and_scale():
    """One block written out: the six parts of `adapt`, in their order."""
    block = opened(PackedBlock(4, 1, 3))
    x, e = torch.randn(5, 4, generator=gen(2), dtype=torch.float64), torch.randn(1, 3, generator=gen(3), dtype=torch.float64)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.adapt(torch.nn.functional.silu(e)).chunk(6, -1)

    def norm(y):
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    q, k, v = block.qkv((1 + scale1) * norm(x) + shift1).chunk(3, -1)
    y = x + gate1 * block.out(torch.softmax(q @ k.T / 2, -1) @ v)
    torch.testing.assert_close(block(x, (5,), e), y + gate2 * block.mlp((1 + scale2) * norm(y) + shift2))


def test_the_look_at_the_context_written_out():
    block = opened(PackedBlock(4, 1, 0, 3))
    x, words = (torch.randn(n, w, generator=gen(n), dtype=torch.float64) for n, w in ((5, 4), (2, 3)))
    q, k, v = block.qkv(block.norm1(x)).chunk(3, -1)
    y = x + block.out(torch.softmax(q @ k.T / 2, -1) @ v)
    k, v = block.read(words).chunk(2, -1)
    y = y + block.tell(torch.softmax(block.ask(block.norm3(y)) @ k.T / 2, -1) @ v)
    torch.testing.assert_close(block(x, (5,), context=words, context_lengths=(2,)), y + block.mlp(block.norm2(y)))


def test_waves_know_distances():
    """The product of two places' waves is a sum of cosines of their difference."""
    a, b = torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([[3.0, 4.0, 9.0]])
    found = (place_waves(a, 24) * place_waves(b, 24)).sum()
    moved = (place_waves(a + 7, 24) * place_waves(b + 7, 24)).sum()
    assert torch.allclose(found, moved, atol=1e-5)
    far = torch.cartesian_prod(*[torch.arange(32.0)] * 3)
    found = place_waves(far[::37], 48, 16)
    assert torch.pdist(found).min() > 0.05  # no two places look alike
    with pytest.raises(ValueError, match="width: got 8"):
        place_waves(a, 8)


def test_rows_of_objects_become_rows_of_tokens():
    assert of_each(torch.tensor([[1.0], [2.0]]), (0, 3)).flatten().tolist() == [2, 2, 2]


# ---- voxels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def some():
    return Voxels.from_grid(torch.rand(3, 6, 6, 6, generator=gen()) < 0.2)


def test_a_grid_comes_back(some):
    bits = some.grid()
    assert torch.equal(bits, torch.rand(3, 6, 6, 6, generator=gen()) < 0.2)
    assert some.lengths == tuple(int(b.sum()) for b in bits)
    for b in range(3):
        assert {tuple(c) for c in some[b].coords.tolist()} == {tuple(c) for c in bits[b].nonzero().tolist()}
    empty = Voxels.from_grid(torch.stack([torch.zeros(4, 4, 4), torch.ones(4, 4, 4)]).bool())
    assert empty.lengths == (0, 64) and torch.equal(empty.grid()[1], torch.ones(4, 4, 4).bool())


def test_centres_are_those_of_the_world(some):
    from gsgen_lib.data.occupancy import cells_of

    assert torch.equal(cells_of(some.centres(), 6), some.coords)
    assert (some.centres() - (some.coords.float() + 0.5) / 6 + 0.5).abs().max() < 1e-7


def test_cells_against_a_loop(some):
    values = torch.randn(len(some.coords), 2, generator=gen(1))
    rows, (_, _, coords, lengths) = some.to_cells(values), some.cells()
    seen = {}
    for t, (b, (x, y, z)) in enumerate(zip(some.objects.tolist(), some.coords.tolist(), strict=True)):
        seen.setdefault((b, x // 2, y // 2, z // 2), {})[4 * (x % 2) + 2 * (y % 2) + z % 2] = t
    assert sorted(seen) == list(seen) and len(seen) == len(rows) == sum(lengths)  # in order, and each cell once
    for row, inside in zip(rows, seen.values(), strict=True):
        for s in range(8):
            wanted = values[inside[s]].tolist() if s in inside else [0.0, 0.0]
            assert row[2 * s:2 * s + 2].tolist() == wanted and row[16 + s] == float(s in inside)
    assert coords.tolist() == [list(place[1:]) for place in seen]
    assert lengths == tuple(sum(place[0] == b for place in seen) for b in range(3))
    assert torch.equal(some.from_cells(rows[:, :16]), values)


@pytest.mark.parametrize(("make", "complaint"), [
    (lambda: Voxels.from_grid(torch.zeros(2, 4, 4, 4)), "wanted .B, R, R, R. of bool"),
    (lambda: Voxels.from_grid(torch.zeros(2, 5, 5, 5).bool()), "R even"),
    (lambda: Voxels.from_grid(torch.zeros(2, 4, 4, 6).bool()), "grid: got"),
    (lambda: Voxels(torch.zeros(3, 3), (3,), 4), "int64"),
    (lambda: Voxels(torch.zeros(3, 3, dtype=torch.long), (2,), 4), "add up to 3"),
    (lambda: Voxels(torch.zeros(3, 3, dtype=torch.long), (3,), 3), "resolution: got 3"),
])
def test_wrong_grids_are_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


# ---- what is near --------------------------------------------------------------------------------------------------


def test_near_attention_is_that_of_its_formula():
    """Against a softmax written out, for objects of different sizes, with a slope for each token and head."""
    from gsgen_lib.nn.packed import attend_packed

    gen = torch.Generator().manual_seed(0)
    lengths, others, heads, width = (3, 5), (4, 2), 2, 6
    q, k, v = (torch.randn(n, heads * width, generator=gen) for n in (8, 6, 6))
    x, p = torch.randn(8, 3, generator=gen), torch.randn(6, 3, generator=gen)
    slope = 0.2 + torch.rand(8, heads, generator=gen)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = attend_packed(q, k, v, heads, lengths, others, (x, p, slope))
            same = attend_packed(q, k, v, heads, lengths, others, (x, p, slope.new_tensor([0.7, 0.7])))
        assert found.shape == (8, heads * (width + 3))
        for i in range(8):
            mine = slice(0, 4) if i < 3 else slice(4, 6)
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                for got, s in ((found, slope[i, h]), (same, torch.tensor(0.7))):
                    score = k[mine, part] @ q[i, part] / width**0.5 - s * (x[i] - p[mine]).square().sum(1)
                    share = score.softmax(0)
                    assert torch.allclose(got[i, part], share @ v[mine, part], atol=1e-5)
                    where = got[i, heads * width + 3 * h:heads * width + 3 * h + 3]
                    assert torch.allclose(where, s.sqrt() * (share @ p[mine] - x[i]), atol=1e-5)


def test_near_blocks_move_with_the_world_and_hear_the_near_more():
    """Everything shifted alike changes nothing; a change far away changes less than the same change nearby."""
    from gsgen_lib.nn.packed import PackedBlock

    torch.manual_seed(0)
    block = PackedBlock(12, 2, 0, 12, near=True)
    torch.nn.init.normal_(block.tell.weight, 0, 0.3)
    x, context = torch.randn(4, 12), torch.randn(20, 12)
    at, there = 0.1 * torch.randn(4, 3), torch.cat([0.1 * torch.randn(10, 3), 0.1 * torch.randn(10, 3) + 2.0])
    base = block(x, (4,), None, context, (20,), (at, there))
    assert torch.allclose(block(x, (4,), None, context, (20,), (at + 0.3, there + 0.3)), base, atol=1e-4)
    apart = []
    for half in (slice(0, 10), slice(10, 20)):
        changed = context.clone()
        changed[half] += 1
        apart.append((block(x, (4,), None, changed, (20,), (at, there)) - base).abs().max().item())
    assert apart[1] < 1e-4 < 1e-2 < apart[0]


def test_near_attention_needs_all_digits():
    """Under autocast it is the same as without: places near each other differ in digits that half precision has not."""
    from gsgen_lib.nn.packed import attend_packed

    gen = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, 8, generator=gen) for _ in range(3))
    places = 0.5 + 0.01 * torch.randn(6, 3, generator=gen)
    with torch.no_grad():
        want = attend_packed(q, k, v, 2, (6,), None, (places, places, torch.tensor([3e4, 3e3])))
        with torch.autocast("cpu", torch.bfloat16):
            found = attend_packed(q, k, v, 2, (6,), None, (places, places, torch.tensor([3e4, 3e3])))
        half = places.bfloat16().float()
        other = attend_packed(q, k, v, 2, (6,), None, (half, half, torch.tensor([3e4, 3e3])))
    assert torch.allclose(found, want, atol=1e-5) and (other - want).abs().max() > 0.1
