"""gsgen bench presets: what it counts, on losses whose answers are known."""

import torch
from torch import nn

from gsgen_lib import bench

presets = bench.load("presets")


def test_bytes_that_are_kept_are_counted_once():
    x = torch.ones(1000, requires_grad=True)
    assert presets.kept_bytes(lambda batch: {"loss": (batch * x).square().sum()}, 3) == 4000  # the square keeps its input
    assert presets.kept_bytes(lambda batch: {"loss": (x * x).sum() + (x * x).sum()}, 1) == 4000  # x, four times
    assert presets.kept_bytes(lambda batch: {"loss": x.sum()}, 1) == 0


def test_time_and_pictures():
    net = nn.Linear(4, 4)
    assert 0 < presets.measured(lambda batch: {"loss": net(torch.ones(batch, 4)).sum()}, net, 2, 2) < 1
    assert all(p.grad is None for p in net.parameters())
    rgba, cameras = presets.photos(2, 3, 8, "cpu")
    assert rgba.shape == (2, 3, 8, 8, 4) and cameras.viewmats.shape == (2, 3, 4, 4) and 0 < rgba[..., 3].mean() < 1


def test_every_gpu_preset_is_there_with_its_loss():
    found = presets.systems("cpu")
    assert len(found) == 9
    for name in ("latent diffusion", "diffusion over its codes", "prior, diffusion", "prior, autoencoder"):  # the quick ones
        network, preset, loss = found[name]
        assert torch.isfinite(loss(1)["loss"]) and preset["steps"] >= 20_000
        before = [p.grad for p in network.parameters()]
        loss(1)["loss"].backward()
        assert any(p.grad is not None for p in network.parameters()) and all(g is None for g in before)


def test_operations_are_those_of_both_passes():
    net = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Linear(32, 16, bias=False))
    found = presets.operations_of(lambda batch: {"loss": net(torch.ones(batch, 64)).sum()}, net)
    forward = 2 * (64 * 32 + 32 * 16)
    assert found == 2 * forward + 2 * 32 * 16  # each weight's slope; and of the second layer's input
    assert all(p.grad is None for p in net.parameters())
