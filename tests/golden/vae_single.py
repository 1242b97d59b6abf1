"""vae_single.safetensors: vae_a under the original names of the autoencoder (ae.safetensors), attention as 1x1 convolutions.

Written backwards from diffusers' names and checked forwards: diffusers' convert_ldm_vae_checkpoint must give vae_a again.
"""
import os

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from common import HERE, write_tensors
from vae import model_a


def original(name, levels):
    part = name.split(".")
    side = part[0]
    if part[1] == "conv_norm_out":
        part[1] = "norm_out"
    elif part[1] in ("down_blocks", "up_blocks"):
        level = part[2] if side == "encoder" else str(levels - 1 - int(part[2]))
        rest = ["block", part[4]] if part[3] == "resnets" else [{"d": "downsample", "u": "upsample"}[part[3][0]]]
        part = [side, part[1].split("_")[0], level] + rest + part[5:]
    elif part[1] == "mid_block" and part[2] == "resnets":
        part = [side, "mid", f"block_{int(part[3]) + 1}"] + part[4:]
    elif part[1] == "mid_block":
        attn = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[part[4]]
        part = [side, "mid", "attn_1", attn, part[-1]]
    return ".".join(part).replace("conv_shortcut", "nin_shortcut")


def main():
    model = model_a()
    levels = len(model.config.block_out_channels)
    ours = {k: v.bfloat16() for k, v in model.state_dict().items()}
    theirs = {}
    for k, v in ours.items():
        name = original(k, levels)
        theirs[name] = v[:, :, None, None] if ".attn_1." in name and v.ndim == 2 else v
    back = convert_ldm_vae_checkpoint(dict(theirs), model.config)
    assert back.keys() == ours.keys()
    for k, v in ours.items():
        assert torch.equal(back[k], v), k
    write_tensors(os.path.join(HERE, "vae_single.safetensors"), theirs)


if __name__ == "__main__":
    main()
