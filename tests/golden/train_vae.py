"""Ten AdamW steps of a KL autoencoder, from vae_a, with given pictures and noise; diffusers' EMA of the weights.

loss = mean |decode(mean + std eps) - x| + kl_weight mean KL(q(z|x) || N(0, 1)), the KL per latent element

train_vae.safetensors
    metadata "train"    settings
    in.K.x [2, 3, 16, 24], in.K.eps [2, 4, 8, 12]     of step K
    out.l1, out.kl, out.norm [10]                     of each step, before the update; the norm before clipping
    out.w.*, out.ema.*                                what was trained, afterwards
"""
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import EMAModel

from common import generator, randn, save
from vae import model_a, moments_of

STEPS = 10
HOW = dict(lr=5e-4, eps=1e-8, weight_decay=1e-2, kl_weight=0.05, max_norm=1.0, ema_decay=0.9999)


def main():
    g = generator(121)
    t = {}
    for k in range(STEPS):
        t[f"in.{k}.x"] = torch.rand(2, 3, 16, 24, generator=g) * 2 - 1
        t[f"in.{k}.eps"] = randn(g, 2, 4, 8, 12)
    m = model_a()
    params = list(m.parameters())
    opt = torch.optim.AdamW(params, lr=HOW["lr"], betas=(0.9, 0.999), eps=HOW["eps"], weight_decay=HOW["weight_decay"])
    ema = EMAModel(params, decay=HOW["ema_decay"])
    out = {"l1": [], "kl": [], "norm": []}
    for k in range(STEPS):
        x, eps = t[f"in.{k}.x"], t[f"in.{k}.eps"]
        p = DiagonalGaussianDistribution(moments_of(m, x))
        l1 = torch.nn.functional.l1_loss(m.decode(p.mean + p.std * eps).sample, x)
        kl = p.kl().mean() / eps[0].numel()
        (l1 + HOW["kl_weight"] * kl).backward()
        out["l1"].append(l1.detach())
        out["kl"].append(kl.detach())
        out["norm"].append(torch.nn.utils.clip_grad_norm_(params, HOW["max_norm"]))
        opt.step()
        opt.zero_grad()
        ema.step(params)
    t |= {"out." + n: torch.stack(v) for n, v in out.items()}
    for (n, p), e in zip(m.named_parameters(), ema.shadow_params):
        t["out.w." + n] = p
        t["out.ema." + n] = e
    save("train_vae", t, weights="vae_a.safetensors", train=HOW)


if __name__ == "__main__":
    main()
