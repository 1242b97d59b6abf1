"""Ten optimiser steps of flow matching on flux_b, LoRA (peft) and full, with given data, noise and sigmas.

x_t = (1 - s) x0 + s n, all fp32;  target = n - x0;  loss = mean( 1[|d| <= 50] d^2 ), d = pred - target.

train_inputs.safetensors    in.K.{x0,noise} [2, 4, 8, 12], in.K.txt [2, 7, 32], in.K.pooled [2, 32], in.K.sigma [2]
                            for the micro-steps K = 0..19 (those of one optimiser step follow each other);
                            in.K.index: sigma's place in the table of 1000 for 24 tokens
{lora,full}_{1,2}.safetensors
    metadata "train"        settings; 1: one micro-step a step; 2: two, with clipping, warm-up and a cosine
    w.*                     LoRA: initial A and B (full: those of flux_b)
    out.loss [10]           of each step, mean over its micro-steps, before the update
    out.norm [10]           of the gradient, before clipping
    out.w.*                 what was trained, afterwards (full: one block of each kind)
    out.y                   prediction for micro-step 0 afterwards, as latents
lora_1_diffusers.safetensors    the LoRA of lora_1 as FluxPipeline.save_lora_weights writes it
"""
import json
import math
import os
import tempfile

import torch
from diffusers import FluxPipeline
from diffusers.optimization import get_scheduler
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors import safe_open

from common import HERE, generator, randn, save, write_tensors
from flux import img_ids, model_b, pack, unpack
from schedule import FLUX, sigmas

H, W, TOKENS, MICRO, STEPS = 8, 12, 7, 20, 10
# What --target_name to_q,to_k,to_v,ff.0,ff.2,ff_context.0,ff_context.2 was meant to say.
TARGETS = ["to_q", "to_k", "to_v", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]


def inputs():
    g = generator(91)
    table = sigmas(FLUX, 1000, H * W // 4)
    t = {}
    for k in range(MICRO):
        t[f"in.{k}.x0"] = randn(g, 2, 4, H, W)
        t[f"in.{k}.noise"] = randn(g, 2, 4, H, W)
        t[f"in.{k}.txt"] = randn(g, 2, TOKENS, 32)
        t[f"in.{k}.pooled"] = randn(g, 2, 32)
        index = (torch.rand(2, generator=g) * 1000).long()
        t[f"in.{k}.index"] = index.int()
        t[f"in.{k}.sigma"] = table[index]
    return t


def predict(model, t, k, guidance=3.5):
    s = t[f"in.{k}.sigma"]
    x = (1 - s.view(-1, 1, 1, 1)) * t[f"in.{k}.x0"] + s.view(-1, 1, 1, 1) * t[f"in.{k}.noise"]
    y = model(hidden_states=pack(x), encoder_hidden_states=t[f"in.{k}.txt"], pooled_projections=t[f"in.{k}.pooled"],
              timestep=s, guidance=torch.full((2,), guidance), img_ids=img_ids(H // 2, W // 2),
              txt_ids=torch.zeros(TOKENS, 3), return_dict=False)[0]
    return unpack(y, H, W)


def loss_of(model, t, k):
    d = predict(model, t, k) - (t[f"in.{k}.noise"] - t[f"in.{k}.x0"])
    return (d.square() * (d.abs() <= 50)).mean()


def train(model, params, t, lr, accumulation, max_norm, scheduler, warmup):
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.999), eps=1e-10, weight_decay=3e-2)
    schedule = get_scheduler(scheduler, opt, num_warmup_steps=warmup, num_training_steps=STEPS)
    losses, norms = [], []
    for step in range(STEPS):
        loss = 0
        for k in range(accumulation * step, accumulation * (step + 1)):
            part = loss_of(model, t, k) / accumulation
            part.backward()
            loss += part.item()
        norms.append(torch.nn.utils.clip_grad_norm_(params, max_norm))
        losses.append(loss)
        opt.step()
        schedule.step()
        opt.zero_grad()
    with torch.no_grad():
        y = predict(model, t, 0)
    return {"out.loss": torch.tensor(losses), "out.norm": torch.stack(norms), "out.y": y}


def lora_name(n):
    return n.replace(".default.", ".")


def save_as_diffusers(model, config):
    """With the lists of the metadata sorted: they come from sets, in an order that changes from run to run."""
    with tempfile.TemporaryDirectory() as d:
        FluxPipeline.save_lora_weights(d, transformer_lora_layers=get_peft_model_state_dict(model),
                                       transformer_lora_adapter_metadata=config.to_dict())
        with safe_open(os.path.join(d, "pytorch_lora_weights.safetensors"), "pt") as f:
            meta, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    adapter = json.loads(meta["lora_adapter_metadata"])
    adapter = {k: sorted(v) if isinstance(v, list) else v for k, v in sorted(adapter.items())}
    meta["lora_adapter_metadata"] = json.dumps(adapter, indent=2)
    write_tensors(os.path.join(HERE, "lora_1_diffusers.safetensors"), tensors, meta)


def main():
    t = inputs()
    save("train_inputs", t)
    one = dict(accumulation=1, max_norm=math.inf, scheduler="constant", warmup=0)
    two = dict(accumulation=2, max_norm=0.05, scheduler="cosine", warmup=2)
    for number, how in ((1, one), (2, two)):
        settings = {k: v for k, v in how.items() if v != math.inf}
        settings |= dict(steps=STEPS, weight_decay=3e-2, eps=1e-10, guidance=3.5)

        torch.manual_seed(92)
        config = LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS)
        model = inject_adapter_in_model(config, model_b())
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert all("lora_" in n for n in params) and len(params) == 2 * (2 * 7 + 2 * 3)
        w = {"w." + lora_name(n): p.detach().clone() for n, p in params.items()}
        out = train(model, list(params.values()), t, 5e-3, **how)
        out |= {"out.w." + lora_name(n): p for n, p in params.items()}
        save(f"lora_{number}", w | out, weights="flux_b.safetensors",
             train=settings | dict(lr=5e-3, rank=4, alpha=2, targets=TARGETS))
        if number == 1:
            save_as_diffusers(model, config)

        model = model_b()
        out = train(model, list(model.parameters()), t, 1e-3, **how)
        out |= {"out.w." + n: p for n, p in model.named_parameters()
                if n.startswith(("transformer_blocks.1.", "single_transformer_blocks.1."))}
        save(f"full_{number}", out, weights="flux_b.safetensors", train=settings | dict(lr=1e-3))


if __name__ == "__main__":
    main()
