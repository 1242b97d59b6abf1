"""Training objectives: outputs and gradients of what a network would give.

objective.safetensors
    in.pred, in.target [3, 5, 8], in.weight [3], in.sigma [3]; some |pred - target| are above 50
    out.mse.{plain,limit,weighted}, grad.in.pred.*;  out.per_sample.limit [3];  out.l1, grad.in.pred.l1
    out.mix = (1 - sigma) target + sigma pred
    in.moments [2, 8, 3, 5], in.eps [2, 4, 3, 5], in.dz; out.z = posterior sample, grad.in.moments.z for sum(z dz)
    out.kl (per latent element), grad.in.moments.kl;  one log variance is -40
"""
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from common import generator, randn, save


def scalar(t, name, loss, x, x_name):
    x.grad = None
    loss.backward()
    t[f"out.{name}"] = loss.detach().reshape(1)
    t[f"grad.in.{x_name}.{name}"] = x.grad.clone()


def losses():
    g = generator(101)
    pred, target = randn(g, 3, 5, 8) * 20, randn(g, 3, 5, 8) * 20
    weight, sigma = torch.rand(3, generator=g) + 0.5, torch.rand(3, generator=g)
    pred.requires_grad_()
    t = {"in.pred": pred, "in.target": target, "in.weight": weight, "in.sigma": sigma}
    d = pred - target
    keep = d.detach().abs() <= 50
    assert 0 < (~keep).sum() < keep.numel() / 4
    scalar(t, "mse.plain", (pred - target).square().mean(), pred, "pred")
    masked = (pred - target).square() * keep
    t["out.per_sample.limit"] = masked.mean(dim=(1, 2)).detach()
    scalar(t, "mse.limit", masked.mean(), pred, "pred")
    scalar(t, "mse.weighted", ((pred - target).square() * keep * weight.view(3, 1, 1)).mean(), pred, "pred")
    scalar(t, "l1", torch.nn.functional.l1_loss(pred, target), pred, "pred")
    s = sigma.view(3, 1, 1)
    t["out.mix"] = ((1 - s) * target + s * pred).detach()
    return t


def posterior():
    g = generator(102)
    moments = randn(g, 2, 8, 3, 5)
    moments[0, 4, 0, 0] = -40.0
    moments.requires_grad_()
    eps, dz = randn(g, 2, 4, 3, 5), randn(g, 2, 4, 3, 5)
    t = {"in.moments": moments, "in.eps": eps, "in.dz": dz}
    p = DiagonalGaussianDistribution(moments)
    z = p.mean + p.std * eps
    t["out.z"] = z.detach()
    (z * dz).sum().backward()
    t["grad.in.moments.z"] = moments.grad.clone()
    p = DiagonalGaussianDistribution(moments)
    scalar(t, "kl", p.kl().mean() / eps[0].numel(), moments, "moments")
    return t


def main():
    save("objective", losses() | posterior())


if __name__ == "__main__":
    main()
