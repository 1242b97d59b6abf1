#!/usr/bin/env python3
"""Checks a run of dt from outside, with torch, diffusers and transformers; by hand, never by `make test`.

    outsider.py sample MODEL INIT.safetensors FINAL.safetensors PROMPT [--steps N] [--lora FILE] [--text_padding none]
        INIT and FINAL are what `dt-sample --init_latents INIT --save_latents FINAL --steps N PROMPT` read and wrote;
        FluxPipeline samples from INIT and the final latents are compared.  Without padding it is given the states of the
        prompt's own tokens.
    outsider.py step MODEL STEP.safetensors
        a file of `dt-train full --dump_steps` without --train_text_encoder: prediction, loss and every gradient of the
        transformer are computed again from the dumped inputs.  Where there is a text mask, sample by sample, each with the
        states that the mask leaves it.

Prints relative L2 errors; exit status 1 if one is above 1e-4."""
import argparse, sys
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

def relative(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30))

def pack(x):
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), c * 4)

def image_ids(h, w):
    ids = torch.zeros(h // 2, w // 2, 3)
    ids[..., 1] += torch.arange(h // 2)[:, None]
    ids[..., 2] += torch.arange(w // 2)[None, :]
    return ids.reshape(-1, 3)

def sample(a):
    pipe = FluxPipeline.from_pretrained(a.model, torch_dtype=torch.float32)
    if a.lora:
        pipe.load_lora_weights(a.lora)
    x = load_file(a.init)["latents"].float()
    want = load_file(a.final)["latents"].float()
    _, c, h, w = x.shape
    f = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    n = min(512, pipe.tokenizer_2.model_max_length)
    prompt = {"prompt": a.prompt, "max_sequence_length": n}
    if a.text_padding == "none":
        ids = pipe.tokenizer_2(a.prompt, truncation=True, max_length=n, return_tensors="pt").input_ids
        prompt = {"prompt_embeds": pipe.text_encoder_2(ids)[0], "pooled_prompt_embeds": pipe.encode_prompt(a.prompt, None)[1]}
    got = pipe(**prompt, height=h * f, width=w * f, num_inference_steps=a.steps, guidance_scale=3.5, latents=pack(x),
               output_type="latent").images
    return [("final latents", relative(got, pack(want)))]

def velocity(m, i, xt):
    def one(b, text):
        return m(hidden_states=pack(xt)[b], encoder_hidden_states=text.float(), pooled_projections=i["pooled"].float()[b],
                 timestep=i["sigma"][b], guidance=i["guidance"][b] if "guidance" in i else None, img_ids=image_ids(*xt.shape[2:]),
                 txt_ids=torch.zeros(text.shape[1], 3), return_dict=False)[0]
    text = i["text_states"]
    if "text_mask" not in i:
        return one(slice(None), text)
    rows = i["text_mask"][:, :text.shape[1]].sum(1).tolist()
    return torch.cat([one(slice(b, b + 1), text[b:b + 1, :n]) for b, n in enumerate(rows)])

def step(a):
    d = load_file(a.step)
    m = FluxTransformer2DModel.from_pretrained(a.model, subfolder="transformer", torch_dtype=torch.float32)
    errors, micro = [], 0
    while f"micro.{micro}.latents" in d:
        i = {k[len(f"micro.{micro}."):]: v for k, v in d.items() if k.startswith(f"micro.{micro}.")}
        x0, n, s = i["latents"], i["noise"], i["sigma"]
        xt = (1 - s.view(-1, 1, 1, 1)) * x0 + s.view(-1, 1, 1, 1) * n
        v = velocity(m, i, xt)
        e = v - pack(n - x0)
        loss = (i["loss_weight"].view(-1, 1, 1) * (e.abs() <= 50) * e * e).mean()
        (loss * i["loss_scale"]).sum().backward()
        errors += [(f"prediction {micro}", relative(v, i["prediction"])), (f"loss {micro}", relative(loss.view(1), i["loss"]))]
        micro += 1
    for name, p in m.named_parameters():
        if f"grad.transformer.{name}" in d:
            errors.append((f"grad {name}", relative(d[f"grad.transformer.{name}"], p.grad)))
    return errors

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    s = p.add_subparsers(required=True)
    q = s.add_parser("sample"); q.set_defaults(run=sample)
    for k in ("model", "init", "final", "prompt"):
        q.add_argument(k)
    q.add_argument("--steps", type=int, default=4)
    q.add_argument("--lora")
    q.add_argument("--text_padding", choices=["max", "none"], default="max")
    q = s.add_parser("step"); q.set_defaults(run=step)
    q.add_argument("model"); q.add_argument("step")
    a = p.parse_args()
    errors = a.run(a)
    worst = sorted(errors, key=lambda e: -e[1])
    for name, e in worst[:8]:
        print(f"{e:.2e}  {name}")
    print(f"{len(errors)} compared, worst {worst[0][1]:.2e}")
    sys.exit(worst[0][1] > 1e-4)

if __name__ == "__main__":
    main()
