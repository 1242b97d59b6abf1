"""Schedules and the optimiser: sigmas of FlowMatchEulerDiscreteScheduler, the choice of training sigmas, loss weights,
the learning rates of diffusers.optimization, torch.optim.AdamW after clip_grad_norm_, and EMAModel.

schedule.safetensors
    out.dynamic.TOKENS.STEPS, out.static.SHIFT.STEPS, out.terminal.TOKENS.STEPS    sigmas [STEPS + 1], the last one 0;
                                    dynamic: FLUX.1-dev's constants; terminal: Qwen-Image's
    in.normal, in.uniform [N]       the raw draws;  out.u.SCHEME: the density's u of them;  out.index.SCHEME: its place in
                                    the table of 1000;  out.sigma.SCHEME: the sigma there for 1024 tokens
    out.weight.SCHEME               loss weights of out.sigma.logit_normal
    out.lr.NAME                     multipliers, fp64, of steps 0..T (T = 40, 7 of warm-up; constant has none)
adamw.safetensors
    in.CASE.w.I, in.CASE.grad.K.I -> out.CASE.w.K.I, out.CASE.norm [10]: parameter I after step K, norms before clipping;
    out.CASE.ema.K.I                diffusers' EMAModel of them
"""
import json

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from common import generator, randn, save

FLUX = dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
            max_image_seq_len=4096)
QWEN = dict(shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256,
            max_image_seq_len=8192, shift_terminal=0.02)


def sigmas(config, steps, tokens=None):
    s = FlowMatchEulerDiscreteScheduler(**config)
    mu = None
    if config["use_dynamic_shifting"]:
        mu = calculate_shift(tokens, config["base_image_seq_len"], config["max_image_seq_len"], config["base_shift"],
                             config["max_shift"])
    s.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert torch.equal(s.timesteps, s.sigmas[:-1] * 1000)
    return s.sigmas


def tables():
    t = {}
    for steps in (1, 4, 28, 1000):
        for tokens in (60, 256, 1024, 2304, 4096, 8100):
            t[f"out.dynamic.{tokens}.{steps}"] = sigmas(FLUX, steps, tokens)
        for shift in (1.0, 3.0, 7.0):
            t[f"out.static.{shift:g}.{steps}"] = sigmas(dict(FLUX, shift=shift, use_dynamic_shifting=False), steps)
        if steps > 1:                       # one step divides by 1 - sigma = 0 there
            t[f"out.terminal.4096.{steps}"] = sigmas(QWEN, steps, 4096)
    return t


def training():
    n, schemes = 256, {"none": {}, "logit_normal": dict(logit_mean=0.0, logit_std=1.0), "mode": dict(mode_scale=1.29),
                       "logit_shifted": dict(logit_mean=0.5, logit_std=0.8)}
    t = {"in.normal": randn(generator(5), n), "in.uniform": torch.rand(n, generator=generator(5))}
    table = sigmas(FLUX, 1000, 1024)
    for name, args in schemes.items():
        scheme = "logit_normal" if name == "logit_shifted" else name
        u = compute_density_for_timestep_sampling(scheme, n, generator=generator(5), **args)
        if name == "logit_normal":
            assert torch.allclose(u, torch.sigmoid(t["in.normal"])), "in.normal is not what was drawn"
        if name == "none":
            assert torch.equal(u, t["in.uniform"]), "in.uniform is not what was drawn"
        t["out.u." + name] = u
        t["out.index." + name] = (u * 1000).long().int()
        t["out.sigma." + name] = table[(u * 1000).long()]
    for scheme in ("none", "sigma_sqrt", "cosmap"):
        t["out.weight." + scheme] = compute_loss_weighting_for_sd3(scheme, t["out.sigma.logit_normal"])
    return t


def learning_rates():
    total, warm, t = 40, 7, {}
    cases = {"constant": {}, "constant_with_warmup": {}, "linear": {}, "cosine": {}, "cosine_with_restarts": {},
             "cosine_with_restarts.3": dict(num_cycles=3), "polynomial": {}, "polynomial.2": dict(power=2.0)}
    for name, args in cases.items():
        opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
        s = get_scheduler(name.split(".")[0], opt, num_warmup_steps=warm, num_training_steps=total, **args)
        lr = []
        for _ in range(total + 1):
            lr.append(opt.param_groups[0]["lr"] / 1e-3)
            opt.step()
            s.step()
        t["out.lr." + name] = torch.tensor(lr, dtype=torch.float64)
    return t


def adamw(case, seed, max_norm, ema_decay, **args):
    g = generator(seed)
    params = [torch.nn.Parameter(randn(g, *shape)) for shape in ((7, 5), (13,), (3, 4, 2))]
    t = {f"in.{case}.w.{i}": p.detach().clone() for i, p in enumerate(params)}
    opt = torch.optim.AdamW(params, **args)
    ema = EMAModel(params, decay=ema_decay)
    norms = []
    for k in range(10):
        for i, p in enumerate(params):
            p.grad = randn(g, *p.shape) * 10.0 ** (k % 3 - 2)
            t[f"in.{case}.grad.{k}.{i}"] = p.grad.clone()
        norms.append(torch.nn.utils.clip_grad_norm_(params, max_norm))
        opt.step()
        for i, p in enumerate(params):
            t[f"out.{case}.w.{k}.{i}"] = p.detach().clone()
        ema.step(params)
        for i, p in enumerate(ema.shadow_params):
            t[f"out.{case}.ema.{k}.{i}"] = p.clone()
    t[f"out.{case}.norm"] = torch.stack(norms)
    return t, dict(args, max_grad_norm=max_norm, ema_decay=ema_decay)


def main():
    save("schedule", tables() | training() | learning_rates(), warmup="7", steps="40")
    a, ca = adamw("a", 81, 0.5, 0.3, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    b, cb = adamw("b", 82, 0.05, 0.9999, lr=1e-4, betas=(0.9, 0.95), eps=1e-10, weight_decay=3e-2)
    save("adamw", a | b, cases=json.dumps({"a": ca, "b": cb}))


if __name__ == "__main__":
    main()
