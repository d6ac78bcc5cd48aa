"""What the gpu presets ask of a machine: gsgen bench presets [--json].

Each system is built as its preset "gpu" says, for pictures of 128 x 128 pixels, and takes `steps` steps on random pictures, one
object at a time. Measured here: seconds and floating-point operations of an object (forward and backward, rasterizing included in
the seconds, not in the operations), and bytes that the forward pass keeps for the backward one. Computed from these: seconds of a
step and hours of the whole training on this machine, if its time grows with the batch; its memory: what is kept, times the batch,
and 20 bytes a parameter (weight, gradient, two moments, average; in single precision).

On a machine with CUDA the whole batch is run, and hours and memory are measured. Elsewhere "hours at 30 TFLOP/s" says what a GPU
that reaches this speed would need; it is an assumption: a tenth of what such GPUs can do in half precision, since the networks
are small and the rasterizer is not counted.
"""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.systems import (
    autoencoder_training,
    autoreconstructor_training,
    code_training,
    feed_forward_training,
    octree_density_training,
    prior_training,
    splat_diffusion_training,
    splat_vae_training,
)
from gsgen_lib.systems.autoreconstructor import AutoReconstructor, AutoReconstructorConfig, var_loss
from gsgen_lib.systems.autoreconstructor_diffusion import CodeDenoiser, CodeDiffusionConfig, Seen, code_loss
from gsgen_lib.systems.contribution_gradient import How, appearance_loss
from gsgen_lib.systems.feed_forward import FeedForward, FeedForwardConfig, reconstruction_loss
from gsgen_lib.systems.octree_density import DensityConfig, OctreeDensity
from gsgen_lib.systems.prior_networks import EncodeDecode, TextAndUNet, make_autoencoder, make_text_encoder, make_unet
from gsgen_lib.systems.splat_diffusion import Condition, SplatDenoiser, SplatDiffusionConfig, diffusion_loss, scene_cameras
from gsgen_lib.systems.splat_vae import SplatVAE, SplatVAEConfig, vae_loss
from gsgen_lib.training import seeded

SPEED = 30e12
BYTES = 20  # a parameter: weight, gradient, two moments of Adam, average


def photos(batch: int, views: int, size: int, device: str) -> tuple[torch.Tensor, Cameras]:
    """Random pictures with a round object in the middle, and their cameras."""
    generator = torch.Generator().manual_seed(0)
    rgba = torch.rand(batch, views, size, size, 4, generator=generator)
    at = (torch.arange(size) + 0.5) / size * 2 - 1
    rgba[..., 3] = (at[:, None] ** 2 + at**2 < 0.4).float()
    cameras = Cameras.stack([Cameras.orbit(views, elevation=15.0, width=size, height=size)] * batch)
    return rgba.to(device), cameras.to(device)


def systems(device: str) -> dict:
    """name -> (network, preset, loss of so many objects)."""
    found = {}
    p = prior_training.PRESETS["gpu"]
    cells = p["size"] // 4
    pictures = seeded(lambda: EncodeDecode(make_autoencoder(p["vae"]["channels"])), 0).to(device)
    unet = seeded(lambda: make_unet(p["channels"], cells, 4, prior_training.ATTENTION), 0)
    painter = TextAndUNet(unet, seeded(lambda: make_text_encoder(300), 0)).to(device)
    found["prior, autoencoder"] = (pictures, p["vae"], lambda batch: autoencoder_training.autoencoder_loss(
        pictures, photos(batch, 1, p["size"], device)[0][:, 0, ..., :3], torch.Generator().manual_seed(0)))
    found["prior, diffusion"] = (painter, p, lambda batch: {"loss": painter(
        torch.randn(batch, 4, cells, cells, device=device), torch.zeros(batch, dtype=torch.long, device=device),
        torch.ones(batch, 24, dtype=torch.long, device=device)).square().mean()})
    for name, backbone in (("feed-forward, unet", "unet"), ("feed-forward, transformer", "transformer")):
        preset = feed_forward_training.PRESETS["gpu"]
        net = seeded(lambda b=backbone, p=preset: FeedForward(FeedForwardConfig(backbone=b, **p["model"])), 0).to(device)

        def loss(batch, net=net):
            rgba, cameras = photos(batch, 9, net.config.size, device)
            return reconstruction_loss(net, net.config, rgba, cameras, rgba[:, :4], cameras[:4])

        found[name] = (net, preset, loss)
    preset = splat_vae_training.PRESETS["gpu"]
    vae = seeded(lambda: SplatVAE(SplatVAEConfig(**preset["model"])), 0).to(device)
    found["splat VAE, f = 8"] = (vae, preset, lambda batch: vae_loss(vae, vae.config, *photos(batch, 9, 128, device), 4))

    preset = splat_diffusion_training.PRESETS["gpu"]
    denoiser = seeded(lambda: SplatDenoiser(SplatDiffusionConfig(cells=16, **preset["model"])), 0).to(device)

    def latent_loss(batch):
        z, known = torch.randn(batch, 4, 6, 16, 16, device=device), torch.ones(batch, 4, device=device)
        given = Condition(torch.randn(batch, 24, 96, device=device), torch.zeros_like(z), known)
        return diffusion_loss(denoiser, denoiser, z, given, scene_cameras(128).to(device))

    found["latent diffusion"] = (denoiser, preset, latent_loss)
    preset = autoreconstructor_training.PRESETS["gpu"]
    var = seeded(lambda: AutoReconstructor(AutoReconstructorConfig(**preset["model"])), 0).to(device)
    found["AutoReconstructor"] = (var, preset, lambda batch: var_loss(
        var, var.config, *photos(batch, 5, 128, device), torch.ones(batch, device=device), 0.01))
    preset = code_training.PRESETS["gpu"]
    codes = seeded(lambda: CodeDenoiser(CodeDiffusionConfig(cells=16, features=256, **preset["model"])), 0).to(device)

    def codes_loss(batch):  # the frozen encoder reads two pictures of each object
        rgba = photos(batch, 2, 128, device)[0]
        with torch.no_grad():
            h, features = var.encode(rgba[:, 0])[0], var.encode(rgba[:, 1])[2]
        seen = Seen(features, torch.ones(batch, 1, 16, 16, device=device), torch.zeros(batch, device=device))
        return code_loss(codes, codes, h, seen)

    found["diffusion over its codes"] = (codes, preset, codes_loss)
    preset = octree_density_training.PRESETS["gpu"]
    octree = seeded(lambda: OctreeDensity(DensityConfig(**preset["network"])), 0).to(device)

    def density_loss(batch):  # stage 3, the longest step: as many anchors and tokens as there may be
        rgba, cameras = photos(batch, 12, 128, device)
        points = torch.randn(batch, 2048, 9, generator=torch.Generator().manual_seed(0)).to(device)
        return appearance_loss(octree, octree.config, (0.1 * points).clamp(-0.5, 0.5), rgba[:, :8], cameras[:8],
                               preset["tokens"][1], preset["count"][1][1], rgba[:, 8:], cameras[8:],
                               torch.Generator().manual_seed(0), How())

    found["octree density"] = (octree, preset, density_loss)
    return found


def kept_bytes(loss, batch: int) -> int:
    """Bytes that the forward pass keeps for the backward one, each storage once."""
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss(batch)["loss"]
    return sum(storages.values())


def operations_of(loss, network) -> int:
    """Floating-point operations of one object, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        loss(1)["loss"].backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def measured(loss, network, batch: int, steps: int) -> float:
    """Seconds of a step, the fastest of some."""
    taken = []
    device = next(network.parameters()).device.type
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            value = loss(batch)["loss"]
        value.backward()
        network.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def main(steps: int = 2) -> dict:
    """steps: that are timed, after one that is not."""
    if steps < 1:
        raise ValueError(f"steps: got {steps}, wanted at least 1")
    cuda = torch.cuda.is_available()
    rows = []
    for name, (network, preset, loss) in systems("cuda" if cuda else "cpu").items():
        parameters, batch = sum(p.numel() for p in network.parameters()), preset["batch"]
        count = sum(preset["steps"]) if isinstance(preset["steps"], tuple) else preset["steps"]
        count += preset.get("fine_steps", 0) + preset.get("masked_steps", 0)
        operations = batch * operations_of(loss, network)
        row = {"system": name, "million parameters": f"{parameters / 1e6:.1f}", "batch": batch, "steps": count,
               "TFLOP, step": f"{operations / 1e12:.2f}"}
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            seconds = measured(loss, network, batch, steps)
            peak = torch.cuda.max_memory_allocated() + 12 * parameters  # moments and average are not there yet
            row["GB"] = f"{peak / 1e9:.1f}"
        else:
            seconds = batch * measured(loss, network, 1, steps)
            one = kept_bytes(loss, 2) - kept_bytes(loss, 1)  # weights are kept as well, but not once for each object
            row["GB"] = f"{(batch * one + BYTES * parameters) / 1e9:.1f}"
            row["hours at 30 TFLOP/s"] = f"{count * operations / SPEED / 3600:.1f}"
        row |= {"seconds, step": f"{seconds:.2f}", "hours, this machine": f"{count * seconds / 3600:.0f}",
                "GFLOP/s reached": f"{operations / seconds / 1e9:.0f}"}
        rows.append(row)
    how = "Measured on the GPU." if cuda else "Measured with one object, times the batch."
    precision = "with half precision" if cuda else "in single precision; half precision keeps about half"
    note = (f"Presets 'gpu', pictures of 128 x 128 pixels. {how} GB {precision}. LPIPS in every step, where a preset has it. "
            "The prompt scorer looks at 64 x 64 pixels, whatever it is given, so its preset has no larger size.")
    return {"name": "presets", "rows": rows, "bars": [], "note": note}
