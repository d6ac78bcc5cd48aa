"""Hostile input, threads, forks, read-only installs: an error or a right answer, never a crash, a hang or silent NaN."""

import os
import stat
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from gsgen_lib.raster import rasterize
from gsgen_lib.raster.api import choose_engine
from gsgen_lib.raster.numba_setup import chunks, set_num_threads
from gsgen_lib.scene.cameras import Cameras
from gsgen_lib.scene.gaussians import Gaussians

FIELDS = ("means", "quats", "scales", "opacities", "colors")


def ball(n=50, seed=0, **kw):
    return Gaussians.random(n, generator=torch.Generator().manual_seed(seed), **kw)


CAMS = Cameras.orbit(1, width=24, height=20)


@pytest.mark.parametrize("engine", ["reference", "numba"])
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_gaussians_are_refused_by_name(field, value, engine):
    g = ball()
    getattr(g, field).view(-1)[3] = value
    with pytest.raises(ValueError, match=f"^{field}: got 1 non-finite"):
        rasterize(g, CAMS, engine=engine)


def test_other_bad_values_are_refused_by_name():
    nan_view = Cameras(CAMS.viewmats.clone().fill_(float("nan")), CAMS.Ks, 24, 20)
    with pytest.raises(ValueError, match="^viewmats: got 16 non-finite"):
        rasterize(ball(), nan_view)
    with pytest.raises(ValueError, match="^background: got"):
        rasterize(ball(), CAMS, background=(0.0, float("nan"), 1.0))
    for value in (-0.1, 1.1):
        g = ball()
        g.opacities[4] = value
        with pytest.raises(ValueError, match=r"^opacities: got values in \["):
            rasterize(g, CAMS)


@pytest.mark.parametrize("kwargs,error,message", [
    (dict(engine="cuda"), ValueError, "engine: got 'cuda'"), (dict(depth_mode="Z"), ValueError, "depth_mode: got 'Z'"),
    (dict(near=0.0), ValueError, "near: got 0.0"), (dict(near=5.0, far=1.0), ValueError, "near: got 5.0"),
    (dict(eps2d=-1.0), ValueError, "eps2d: got -1"), (dict(radius_clip=float("nan")), ValueError, "radius_clip: got nan"),
    (dict(background=(1.0, 1.0)), ValueError, r"background: got shape \(2,\)"),
    (dict(background=torch.ones(5, 3)), ValueError, r"background: got shape \(5, 3\)")])
def test_wrong_arguments_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        rasterize(ball(), CAMS, **kwargs)


def test_wrong_types_and_engines_that_cannot_run():
    with pytest.raises(TypeError, match="wanted Gaussians, Cameras"):
        rasterize(ball().means, CAMS)
    with pytest.raises(ValueError, match="'numba' wants float32"):
        rasterize(ball().to(torch.float64), CAMS, engine="numba")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'gsplat' wants float32 tensors on CUDA"):
            rasterize(ball(), CAMS, engine="gsplat")
    assert choose_engine("auto", torch.zeros(1)) == "numba"
    half = rasterize(ball().to(torch.bfloat16), CAMS)  # what a network under autocast emits
    assert half.rgb.dtype == torch.float32 and half.info.engine == "numba"


def test_extreme_but_finite_scenes_give_finite_images_and_gradients():
    generator = torch.Generator().manual_seed(0)
    for magnitude in (1e-20, 1e-3, 1e3, 1e8, 1e18, 1e30):
        n = 200
        leaves = [magnitude * torch.randn(n, 3, generator=generator), torch.randn(n, 4, generator=generator),
                  torch.rand(n, 3, generator=generator) * magnitude, torch.rand(n, generator=generator).round(),
                  torch.rand(n, 3, generator=generator)]
        leaves = [x.requires_grad_() for x in leaves]
        cams = Cameras.look_at(torch.tensor([[0.0, 0, 1.8], [1e-3, 0.0, 0.02]]), target=(0.0, 0.0, -1.0), width=33, height=17)
        out = rasterize(Gaussians(*leaves), cams, engine="numba")
        (out.rgb.sum() + out.depth.sum() + out.alpha.sum()).backward()
        for x in (out.rgb, out.alpha, out.depth):
            assert torch.isfinite(x).all(), f"magnitude {magnitude}"
        if magnitude <= 1e8:
            assert all(torch.isfinite(x.grad).all() for x in leaves), f"magnitude {magnitude}"


def test_results_do_not_depend_on_threads_and_repeat_exactly():
    def run():
        leaves = [getattr(ball(3000), f).clone().requires_grad_() for f in FIELDS]
        out = rasterize(Gaussians(*leaves), Cameras.orbit(3, width=50, height=60))
        (out.rgb * torch.rand(out.rgb.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        return [out.rgb, out.depth, out.info.grad_norm2d] + [x.grad for x in leaves]

    try:
        results = []
        for threads in (1, 2, 2, 3):
            set_num_threads(threads)
            results.append(run())
    finally:
        set_num_threads(None)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    with pytest.raises(ValueError, match="n: got 0"):
        set_num_threads(0)


def test_chunks_cover_everything_once():
    for total in (0, 1, 5, 16, 17, 1000):
        pieces = chunks(total, 16)
        assert [i for a, b in pieces for i in range(a, b)] == list(range(total)) and len(pieces) <= 16


def test_two_python_threads_render_at_once():
    want = [rasterize(ball(500, seed=s), CAMS).rgb for s in range(4)]
    wrong = []

    def work(seed):
        for _ in range(20):
            if not torch.equal(rasterize(ball(500, seed=seed), CAMS).rgb, want[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert not any(t.is_alive() for t in threads) and wrong == []


def run_python(code: str, timeout=240, **env) -> str:
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout,
                            env={**os.environ, **env})
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_rendering_after_a_fork():
    out = run_python("""
        import os, torch
        from gsgen_lib import Cameras, Gaussians, rasterize
        from gsgen_lib.raster.numba_setup import set_num_threads
        set_num_threads(2)
        g = Gaussians.random(500, generator=torch.Generator().manual_seed(0))
        cams = Cameras.orbit(2)
        want = rasterize(g, cams).rgb  # threads exist now
        pid = os.fork()
        if pid == 0:
            same = all(torch.equal(rasterize(g, cams).rgb, want) for _ in range(3))
            os._exit(0 if same else 7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """, timeout=120)
    assert out.split() == ["0"]


def test_runs_from_a_read_only_install(tmp_path):
    """A copy of the library in a folder that cannot be written, with a cache folder that cannot either."""
    import shutil
    import gsgen_lib
    target = tmp_path / "site"
    shutil.copytree(os.path.dirname(gsgen_lib.__file__), target / "gsgen_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for folder, _, files in os.walk(target):
        for f in files:
            os.chmod(os.path.join(folder, f), stat.S_IREAD)
        os.chmod(folder, stat.S_IREAD | stat.S_IEXEC)
    code = f"""
        import sys
        sys.path.insert(0, {str(target)!r})
        import numba.core.caching as caching  # root may write anywhere: take the cache folders away by hand
        caching._CacheLocator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError("read-only"))
        import torch, gsgen_lib
        assert gsgen_lib.__file__.startswith({str(target)!r})
        from gsgen_lib import Cameras, Gaussians, rasterize
        from gsgen_lib.raster.numba_composite import exp_neg
        scene = Gaussians.random(20, generator=torch.Generator().manual_seed(0))
        means = scene.means.requires_grad_()
        out = rasterize(scene, Cameras.orbit(1, width=16, height=16), engine="numba")
        out.rgb.sum().backward()
        print(type(exp_neg._cache).__name__, out.rgb.sum().item(), means.grad.abs().sum().item())
    """
    name, *numbers = run_python(code, PYTHONDONTWRITEBYTECODE="1").split()
    scene = Gaussians.random(20, generator=torch.Generator().manual_seed(0))
    means = scene.means.requires_grad_()
    out = rasterize(scene, Cameras.orbit(1, width=16, height=16), engine="reference")
    out.rgb.sum().backward()
    assert name == "NullCache"
    assert [float(x) for x in numbers] == pytest.approx([out.rgb.sum().item(), means.grad.abs().sum().item()], rel=1e-4)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, stat.S_IRWXU)


def test_no_access_out_of_bounds(tmp_path):
    """The kernels compiled with bounds checking, on scenes made to overflow: radii, tiles, integers."""
    out = run_python("""
        import torch
        from gsgen_lib import Cameras, Gaussians, rasterize
        gen = torch.Generator().manual_seed(0)
        for width, height, spread, size in ((33, 17, 3.0, 0.3), (1, 1, 1.0, 10.0), (40, 16, 1e6, 1e6), (7, 50, 0.2, 1e-5)):
            n = 60
            leaves = [spread * torch.randn(n, 3, generator=gen), torch.randn(n, 4, generator=gen),
                      size * torch.rand(n, 3, generator=gen), torch.rand(n, generator=gen), torch.rand(n, 3, generator=gen)]
            leaves = [x.requires_grad_() for x in leaves]
            cams = Cameras.look_at(torch.tensor([[0.0, 0, 1.8], [0.01, 0.0, 0.02]]), target=(0.0, 0.0, -1.0),
                                   width=width, height=height)
            out = rasterize(Gaussians(*leaves), cams)
            (out.rgb.sum() + out.depth.sum()).backward()
        rasterize(Gaussians.random(0), cams)
        print("finished", bool(torch.isfinite(out.rgb).all()))
    """, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path), NUMBA_OPT="1")
    assert out.split() == ["finished", "True"]


def test_skewed_cameras_are_refused_since_no_engine_has_skew():
    cams = Cameras.orbit(1, width=16, height=16)
    bent = cams.Ks.clone()
    bent[..., 0, 1] = 2.0
    with pytest.raises(ValueError, match="^Ks: got skew 2, wanted 0"):
        rasterize(Gaussians.random(5), Cameras(cams.viewmats, bent, 16, 16))


@pytest.mark.parametrize("engine", ["numba", "reference"])
def test_no_engine_sends_gradients_to_the_intrinsics(engine):
    cams, Ks = Cameras.orbit(1, width=16, height=16), Cameras.orbit(1, width=16, height=16).Ks.requires_grad_()
    scene = Gaussians.random(20, generator=torch.Generator().manual_seed(0))
    means = scene.means.requires_grad_()
    out = rasterize(Gaussians(means, scene.quats, scene.scales, scene.opacities, scene.colors),
                    Cameras(cams.viewmats, Ks, 16, 16), engine=engine)
    out.rgb.sum().backward()
    assert Ks.grad is None and means.grad.abs().sum() > 0
