"""Each of these lines is guarded: breaking it turns a test red.

The library and the tests are copied, one line of the copy is broken, and the tests that should notice are run there.
The unbroken copy passes the same tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RASTER, SCENE, DIFFUSION = "tests/raster/test_raster.py", "tests/scene/test_scene.py", "tests/diffusion/test_diffusion.py"
SCORER, PRIOR = "tests/systems/test_prompt_scorer.py", "tests/systems/test_prior.py"
SDS, DREAM, MESH = "tests/systems/test_score_distillation.py", "tests/systems/test_dreamgaussian.py", "tests/mesh/test_mesh.py"
REWARD = "tests/systems/test_prior_reward.py"
FORWARD, VAE, SCENES = (f"tests/systems/test_{name}.py" for name in ("feed_forward", "splat_vae", "splat_diffusion"))
VOXELS, FLOW = "tests/systems/test_sparse_voxels.py", "tests/systems/test_sparse_voxels_flow.py"
OCTREE, DENSITY = "tests/nn/test_octree.py", "tests/systems/test_octree_density.py"
VALUES = f"{RASTER}::test_values_equal_the_dense_oracle"
GRADIENTS = f"{RASTER}::test_gradients_equal_autograd_of_the_oracle"

# what is broken: (file in gsgen_lib, the line's text, its replacement, tests that must notice)
BUGS = {
    "depth sort skipped, numba": ("raster/numba_composite.py", "keys[:], order[:n] = keys2, order2", "keys[:] = keys2",
                                  f"{VALUES}[hundreds overlapping-False-numba]"),
    "depth sort skipped, reference": ("raster/reference.py", "visible[torch.argsort(p.depths[b, v, visible].detach(), stable=True)]",
                                      "visible", f"{VALUES}[hundreds overlapping-False-reference]"),
    "pixel centre": ("raster/numba_composite.py", "s[p], s[PIXELS + p] = x + HALF, y + HALF", "s[p], s[PIXELS + p] = f4(x), f4(y)",
                     f"{VALUES}[a ball-False-numba]"),
    "transposed rotation": ("scene/gaussians.py", "1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),",
                            "1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y),",
                            f"{SCENE}::test_quaternions_equal_scipy"),
    "transposed rotation, numba": ("raster/numba_projection.py", "2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),",
                                   "2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),", f"{VALUES}[a ball-False-numba]"),
    "SH sign": ("scene/sh.py", "basis += [-c1 * y, c1 * z, -c1 * x]", "basis += [-c1 * y, c1 * z, c1 * x]",
                f"{SCENE}::test_sh_basis_equals_scipy_real_harmonics"),
    "background left out of the gradient": ("raster/api.py", "rgb + (1.0 - alpha) * background[", "rgb + (1.0 - alpha.detach()) * background[",
                                            f"{GRADIENTS}[a ball-False-numba]"),
    "what lies behind left out of dL/dalpha": ("raster/numba_composite.py", "d_alpha = T * cv - R * behind", "d_alpha = T * cv",
                                               f"{GRADIENTS}[a ball-False-numba]"),
    "gradient through the clamp of alpha": ("raster/numba_composite.py", "if ok & (a_free <= max_alpha) else ZERO", "if ok else ZERO",
                                            f"{GRADIENTS}[opaque and large-False-numba]"),
    "transmittance never runs out": ("raster/numba_composite.py", "ok = hit & (T_next > t_min)\n                w = T * a if ok else ZERO\n                s[ROW3",
                                     "ok = hit & (T_next > ZERO)\n                w = T * a if ok else ZERO\n                s[ROW3",
                                     f"{VALUES}[hundreds overlapping-False-numba]"),
    "row of a tile forgotten": ("raster/numba_composite.py", "math.ceil(y + low - 0.502)", "math.ceil(y + low + 0.498)",
                                f"{VALUES}[a ball-False-numba]"),
    "depth's share of the Jacobian gradient": ("raster/numba_projection.py", "v_z -= 2 * v_az * az / z", "v_z -= v_az * az / z",
                                               f"{GRADIENTS}[a ball-False-numba]"),
    "quaternion normalisation": ("raster/numba_projection.py", "return inv * (vw - along * w)", "return inv * vw",
                                 f"{GRADIENTS}[a ball-False-numba]"),
    "antialiasing left out": ("raster/projection.py", "opacities = opacities * torch.where(det_orig > 0", "opacities = opacities * torch.where(det_orig < 0",
                              f"{VALUES}[a ball-True-reference]"),
    "ray through the pixel corner": ("scene/cameras.py", "u = torch.arange(self.width, **opts) + 0.5", "u = torch.arange(self.width, **opts)",
                                     f"{SCENE}::test_rays_go_through_the_pixels_that_points_project_to"),
    "PLY bands not channel-major": ("scene/ply.py", "sh[:, 1:].transpose(1, 2).flatten(1)", "sh[:, 1:].flatten(1)", "tests/scene/test_ply.py"),
    "split Gaussian kept": ("systems/fitting.py", "keep[split] = False", "keep[split] = True",
                            "tests/systems/test_fitting.py::test_small_gaussians_are_cloned_large_ones_split_transparent_ones_pruned"),
    "harmonics seen from behind": ("raster/api.py", "g.means[:, None] - cams.centers[:, :, None]", "cams.centers[:, :, None] - g.means[:, None]",
                                   "tests/raster/test_options.py::test_the_direction_of_harmonics_is_from_the_camera_to_the_splat"),
    "expected depth not divided": ("raster/api.py", "depth = depth / alpha.clamp_min(1e-10)", "depth = depth / 1",
                                   "tests/raster/test_options.py::test_expected_depth_is_the_sum_divided_by_alpha"),
    "sign of the noise": ("diffusion/gaussian.py", "return signal * x0 + noise * eps", "return signal * x0 - noise * eps",
                          f"{DIFFUSION}::test_noising_keeps_the_variance_and_is_seen_by_each_item"),
    "v sign": ("diffusion/gaussian.py", "signal * x_t - noise * prediction if", "signal * x_t + noise * prediction if",
               f"{DIFFUSION}::test_convert_gives_the_definition_and_comes_back[v-x0]"),
    "schedule index off by one": ("diffusion/samplers.py", "alphas_cumprod.cpu()[times]", "alphas_cumprod.cpu()[(times - 1).clamp_min(0)]",
                                  f"{DIFFUSION}::test_samplers_ask_at_the_times_and_levels_they_say"),
    "guidance form": ("diffusion/guidance.py", "uncond + guidance_scale * (cond - uncond)", "cond + guidance_scale * (cond - uncond)",
                      f"{DIFFUSION}::test_guidance_form"),
    "flow velocity sign": ("diffusion/flow.py", "eps, t), t) - (eps - x0)", "eps, t), t) - (x0 - eps)", f"{DIFFUSION}::test_road_and_loss_of_flow"),
    "own prompt not the first": ("systems/prompt_scorer.py", "torch.zeros(len(scores), dtype=torch.long", "torch.ones(len(scores), dtype=torch.long",
                                 f"{SCORER}::test_near_miss_loss_against_loops_in_double_precision"),
    "held-out captions called wrong": ("systems/scorer_training.py", 'if (family, new["color"], new["pattern"]) in COMBINATIONS[split]:', "if True:",
                                       "tests/systems/test_scorer_training.py::test_near_misses_miss_by_one_attribute_and_never_name_a_held_out_combination"),
    "views never see each other": ("systems/prior.py", "unet.set_attn_processor(_SelfAttentionAcrossViews(views))", "pass",
                                   f"{PRIOR}::test_views_see_each_other_only_when_asked"),
    "latents not scaled": ("systems/prior.py", "latents.to(self.dtype) / self.scaling", "latents.to(self.dtype)",
                           f"{PRIOR}::test_sampling_equals_diffusers_own_pipeline"),
    "KL without the variance": ("systems/autoencoder_training.py", "(mean.square() + logvar.exp() - 1 - logvar)", "(mean.square())",
                                f"{PRIOR}::test_autoencoder_loss_adds_up"),
    "views of a set noised apart": ("systems/prior_training.py", "(len(z) // count,), generator=generator).repeat_interleave(count)",
                                    "(len(z),), generator=generator)", f"{PRIOR}::test_training_draws_what_its_header_says"),
    "decoder that hears nothing of its judge": ("systems/autoencoder_training.py", "held, (decoded,)).mean()", "held, (decoded.detach(),)).mean()",
                                                f"{PRIOR}::test_decoder_and_judge_learn_from_their_own_losses"),
    "sign of score distillation": ("systems/score_distillation.py", "(_answer(predict, x_t, t) - eps)", "(eps - _answer(predict, x_t, t))",
                                   f"{SDS}::test_autograd_equals_the_formula_and_never_enters_the_network[sigma2]"),
    "network differentiated": ("systems/score_distillation.py", "    with torch.no_grad():\n        x_t = q_sample(x.detach(), eps, abar)",
                               "    if True:\n        x_t = q_sample(x, eps, abar)", f"{SDS}::test_the_gradient_carries_no_graph"),
    "other views pulled instead of pushed": ("diffusion/guidance.py", "louder * (c - o)", "louder * (o - c)",
                                             f"{SDS}::test_the_view_word_is_louder_than_the_caption"),
    "interval score matching asks at s": ("systems/score_distillation.py", "(_answer(predict, x_t, torch.tensor(t)) - eps_s)",
                                          "(_answer(predict, x_s, torch.tensor(s)) - eps_s)",
                                          f"{SDS}::test_the_last_step_of_ism_goes_to_the_level_of_t"),
    "a sample's view word compared with itself": ("systems/prior.py", "self.encode_prompt(bare), guidance", "self.encode_prompt(prompts), guidance",
                                                  f"{PRIOR}::test_the_view_word_is_louder_by_its_difference_to_the_bare_caption[v_prediction-1.0]"),
    "words of another view": ("systems/dreamgaussian.py", "text = _text(prompts, together, c, azimuths, elevations)",
                                   "text = _text(prompts, together, c, azimuths[::-1], elevations)", f"{DREAM}::test_each_view_is_asked_for_by_its_own_words"),
    "one half of the density's exponent": ("mesh.py", "torch.exp(-0.5 * white.square().sum(-1))", "torch.exp(-white.square().sum(-1))",
                                           f"{MESH}::test_blocked_field_equals_brute_force_in_double_precision[16]"),
    "texture upside down": ("mesh.py", "1 - uv[..., 1] * 2], -1)", "uv[..., 1] * 2 - 1], -1)", f"{MESH}::test_rendering_a_texture_shows_it"),
    "one mean instead of two smooths a texture": ("systems/texture_refinement.py", "for _ in range(2):", "for _ in range(1):",
                                                  f"{DREAM}::test_smoothing_turns_no_stripes_around"),
    "reward through the first steps": ("diffusion/samplers.py", "i >= steps - through", "i < through",
                                       f"{REWARD}::test_the_gradient_flows_through_the_last_steps_only[3]"),
    "reward without guidance": ("systems/prior_reward.py", "guided(predict_v, cond, uncond, guidance_scale)", "guided(predict_v, cond, uncond, 1.0)",
                                f"{REWARD}::test_it_draws_what_the_sampler_draws"),
    "velocity sign": ("diffusion/gaussian.py", "return q_sample(eps, -x0, abar)", "return q_sample(eps, x0, abar)",
                      f"{DIFFUSION}::test_velocity_is_the_derivative_along_the_rotation"),
    "the slope that corrections read, upside down": ("systems/pixel_splats.py", "g.sign() * torch.log1p", "-g.sign() * torch.log1p",
                                                     f"{FORWARD}::test_what_fails_is_the_error_and_its_slope"),
    "splats beside their rays": ("systems/pixel_splats.py", "(1 if a.shape[-1] == 3 else ray)", "1",
                                 f"{FORWARD}::test_the_transformers_splats_stay_on_their_rays_and_the_unets_need_not"),
    "a mirrored picture with its old camera": ("systems/feed_forward_training.py", "M[0, 1:] = M[1:, 0] = -1", "M[0, 1:] = -1",
                                               f"{FORWARD}::test_a_mirrored_scene_looks_mirrored"),
    "a hull that one silhouette makes": ("nn/cross_view.py", "within = found[..., 3].amin(1)", "within = found[..., 3].amax(1)",
                                         "tests/nn/test_cross_view.py::test_the_hull_of_a_ball_is_met_just_before_the_ball"),
    "KL dropped": ("systems/splat_vae.py", "config.weight_kl * kl", "0 * kl", f"{VAE}::test_the_loss_is_that_of_its_formula"),
    "variance for sigma": ("systems/splat_vae.py", "(0.5 * logvar).exp() * noise", "logvar.exp() * noise",
                           f"{VAE}::test_the_loss_is_that_of_its_formula"),
    "the leak: given views encoded with the others": ("systems/splat_diffusion_training.py", "vae.encode(rgba[every, rows], some)[0]",
                                                      "mu[every, rows]", f"{SCENES}::test_training_encodes_given_views_alone"),
    "guidance away from the words": ("systems/splat_diffusion.py", "guided(model, rows, rows + b,", "guided(model, rows + b, rows,",
                                     f"{SCENES}::test_sampling_finds_the_only_scene_there_is_and_guidance_is_its_formula[x0]"),
    "offsets without a bound": ("systems/sparse_voxels.py", "torch.tanh(a + inside)", "(a + inside)",
                                f"{VOXELS}::test_no_gaussian_leaves_its_voxel_by_more_than_half_of_it[2-1000.0]"),
    "what hides is not asked": ("systems/sparse_voxels.py", "seen = depth <= near.gather(1, pixel) + 2 / r", "seen = depth > 0",
                                f"{VOXELS}::test_a_voxel_behind_another_reads_nothing_of_it"),
    "the known road, the other way": ("systems/sparse_voxels_flow.py", "torch.where(kept[1], noise - kept[0], v)",
                                      "torch.where(kept[1], kept[0] - noise, v)",
                                      f"{FLOW}::test_what_is_known_stays_and_the_rest_is_drawn"),
    "kept voxels decoded anew": ("systems/sparse_voxels_edit.py", "raw = torch.where(fresh[:, None, None], raw, placed.raw)", "pass",
                                 f"{FLOW}::test_what_is_outside_of_the_box_stays_to_the_bit[repaint]"),
    "all scenes in one attention": ("nn/packed.py", "zip(q.split(lengths), k.split(others), v.split(others), strict=True)",
                                    "[(q, k, v)]", f"{FLOW}::test_scenes_of_a_batch_do_not_hear_each_other"),
    "structures drawn, not unscaled": ("systems/sparse_voxels_flow.py", "from_structure_tokens(net.unscale(z), side, c.latent)",
                                       "from_structure_tokens(z, side, c.latent)",
                                       f"{VOXELS[:-3]}_details.py::test_tokens_that_are_drawn_are_unscaled"),
    "no background behind": ("raster/contribution.py", "C = background * T_end[:, None]", "C = 0 * background * T_end[:, None]",
                             "tests/raster/test_contribution.py::test_each_is_worth_what_is_lost_without_it[white]"),
    "a tooth too few": ("nn/octree.py", "(line - _uniform(len(n), generator, q)[:, None]).ceil()",
                        "(line - _uniform(len(n), generator, q)[:, None]).floor()", f"{OCTREE}::test_leaves_get_their_share[systematic]"),
    "children mirrored": ("nn/octree.py", "child[:, None] >> torch.arange(3, device=child.device)",
                          "child[:, None] >> torch.arange(2, -1, -1, device=child.device)", f"{OCTREE}::test_leaves_get_their_share[iid]"),
    "log q of the last level alone": ("nn/octree.py", "log = log[which] + found[which, child]", "log = found[which, child]",
                                      f"{OCTREE}::test_leaves_get_their_share[systematic]"),
    "nearness without |p|^2": ("nn/packed.py", "torch.cat([p, p.square().sum(1, keepdim=True)], 1)",
                               "torch.cat([p, 0 * p.square().sum(1, keepdim=True)], 1)",
                               "tests/nn/test_packed.py::test_near_attention_is_that_of_its_formula"),
    "worth of an anchor's best alone": ("systems/contribution_gradient.py", "return l1.unflatten(1, (anchors, -1)).sum(-1)",
                                        "return l1.unflatten(1, (anchors, -1)).amin(-1)",
                                        f"{DENSITY}::test_the_gradient_of_a_place_is_what_its_gaussians_are_worth[1.0]"),
    "the mean taken off first": ("systems/contribution_gradient.py", "    if how.clamp:\n", "    d = d - d.mean(1, keepdim=True)\n    if how.clamp:\n",
                                 f"{DENSITY}::test_taming_is_done_in_order"),
}


def copy_tree(target: Path) -> None:
    for name in ("gsgen_lib", "tests/raster", "tests/scene", "tests/systems", "tests/diffusion", "tests/mesh", "tests/nn"):
        shutil.copytree(ROOT / name, target / name)  # with compiled kernels: only what changes is compiled again


def run_tests(folder: Path, tests: list[str]) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(folder), "GSGEN_DATA": str(ROOT / "data"), "OMP_NUM_THREADS": "1"}
    env.pop("NUMBA_CACHE_DIR", None)
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull,
                           "--rootdir", str(folder), *tests], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_noticed(bug, tmp_path):
    file, line, broken, test = BUGS[bug]
    copy_tree(tmp_path)
    source = tmp_path / "gsgen_lib" / file
    text = source.read_text()
    assert text.count(line) == 1, f"{file}: the line to break occurs {text.count(line)} times; mend this test"
    source.write_text(text.replace(line, broken))
    result = run_tests(tmp_path, [test])
    assert result.returncode == 1 and "1 failed" in result.stdout, result.stdout[-1500:] + result.stderr[-500:]


def test_the_unbroken_copy_passes(tmp_path):
    copy_tree(tmp_path)
    probe = "import gsgen_lib; print(gsgen_lib.__file__)"
    where = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": str(tmp_path)}).stdout
    assert where.startswith(str(tmp_path))
    result = run_tests(tmp_path, sorted({test for _, _, _, test in BUGS.values()}))
    assert result.returncode == 0, result.stdout[-1500:]
