"""AutoencoderKL: vae_a (two levels, no quant convs, shift and scale), vae_b (three levels, quant convs)."""
import torch
from diffusers import AutoencoderKL

from common import config_of, generator, gradients, randn, randomise, save, weights

A = dict(in_channels=3, out_channels=3, block_out_channels=[8, 16], layers_per_block=1, latent_channels=4,
         norm_num_groups=4, sample_size=32, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
         use_post_quant_conv=False, mid_block_add_attention=True,
         down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
B = dict(A, block_out_channels=[8, 16, 16], norm_num_groups=2, layers_per_block=2, scaling_factor=0.13025,
         shift_factor=None, use_quant_conv=True, use_post_quant_conv=True,
         down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3)


def model_a():
    return randomise(AutoencoderKL(**A), 3)


def moments_of(m, x):
    h = m.encoder(x)
    return m.quant_conv(h) if m.quant_conv is not None else h


def golden(name, m, seed):
    g = generator(seed)
    down = 2 ** (len(m.config.block_out_channels) - 1)
    i = {"x": torch.rand(2, 3, 24, 40, generator=g) * 2 - 1, "z": randn(g, 2, 4, 24 // down, 40 // down)}
    for x in i.values():
        x.requires_grad_()
    outputs = {"moments": moments_of(m, i["x"]), "y": m.decode(i["z"]).sample}
    save(name, weights(m) | gradients(m, outputs, i, seed + 1), config_of(m))


def main():
    golden("vae_a", model_a(), 31)
    golden("vae_b", randomise(AutoencoderKL(**B), 4), 41)


if __name__ == "__main__":
    main()
