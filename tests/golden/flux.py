"""FLUX transformer: flux_a (no guidance, random ids), flux_b (guidance, non-square, batch 2), flux_b_bf16 (flux_b in
bf16 storage)."""
import torch
from diffusers import FluxTransformer2DModel

from common import config_of, generator, gradients, randn, randomise, save, weights

A = dict(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
         joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=False, axes_dims_rope=[4, 4, 8])
B = dict(A, in_channels=16, num_layers=2, num_single_layers=2, guidance_embeds=True)


def img_ids(rows, cols):
    ids = torch.zeros(rows, cols, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(cols)[None, :]
    return ids.reshape(rows * cols, 3)


def pack(x):
    """Latents [B, C, H, W] to tokens [B, H/2 W/2, 4C], channels (c, dy, dx)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(x, h, w):
    b, _, c = x.shape
    return x.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)


def model_b(dtype=torch.float32):
    return randomise(FluxTransformer2DModel(**B), 2).to(dtype)


def grid_ids(tokens, rows, cols):
    """Positions of text, then of the image."""
    return torch.cat([torch.zeros(tokens, 3), img_ids(rows, cols)])


def run(model, inputs, ids):
    tokens = inputs["txt"].shape[1]
    return model(hidden_states=inputs["img"], encoder_hidden_states=inputs["txt"], pooled_projections=inputs["pooled"],
                 timestep=inputs["t"], guidance=inputs.get("guidance"), img_ids=ids[tokens:], txt_ids=ids[:tokens],
                 return_dict=False)[0]


def inputs_of(seed, batch, rows, cols, tokens, config, guidance, t):
    g = generator(seed)
    i = {"img": randn(g, batch, rows * cols, config["in_channels"]),
         "txt": randn(g, batch, tokens, config["joint_attention_dim"]),
         "pooled": randn(g, batch, config["pooled_projection_dim"])}
    for x in i.values():
        x.copy_(x.bfloat16())               # the bf16 run starts from the same numbers
        x.requires_grad_()
    i["t"] = torch.tensor(t)
    if guidance:
        i["guidance"] = torch.tensor(guidance)
    return i


def main():
    m = randomise(FluxTransformer2DModel(**A), 1)
    i = inputs_of(11, 1, 4, 4, 48, A, None, [1.0])
    ids = torch.randint(0, 100, (48 + 16, 3), generator=generator(13)).float()
    y = run(m, i, ids)
    save("flux_a", weights(m) | gradients(m, {"y": y}, i, 12) | {"in.ids": ids}, config_of(m))

    m = model_b()
    i = inputs_of(21, 2, 6, 10, 7, B, [3.5, 1.0], [0.71875, 0.25])
    y = run(m, i, grid_ids(7, 6, 10))
    save("flux_b", weights(m) | gradients(m, {"y": y}, i, 22), config_of(m), rows="6", cols="10")

    m = model_b(torch.bfloat16)
    i = {n: x.detach().bfloat16().requires_grad_(n in ("img", "txt", "pooled")) for n, x in i.items()}
    y = run(m, i, grid_ids(7, 6, 10))
    save("flux_b_bf16", gradients(m, {"y": y}, i, 22), config_of(m), rows="6", cols="10",
         weights="flux_b.safetensors")


if __name__ == "__main__":
    main()
