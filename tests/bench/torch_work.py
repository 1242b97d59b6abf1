"""What tests/bench/work.h describes, from diffusers, transformers and peft; served as `bench -s` is.

    torch_work.py [--dtype f32|bf16] [--compile] NAME
"""
import argparse
import sys
import time

import torch

LORA = (r".*(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)|ff\.net\.0\.proj|ff\.net\.2"
        r"|ff_context\.net\.0\.proj|ff_context\.net\.2|proj_mlp|single_transformer_blocks\.\d+\.proj_out)")


def flux(dtype):
    from diffusers import FluxTransformer2DModel
    torch.manual_seed(1)
    net = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=4, num_single_layers=8, attention_head_dim=128, num_attention_heads=6,
        joint_attention_dim=4096, pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56)).to(dtype)
    ids = torch.zeros(16, 16, 3)
    ids[..., 1] += torch.arange(16)[:, None]
    ids[..., 2] += torch.arange(16)[None, :]
    inputs = dict(
        hidden_states=torch.randn(1, 256, 64, dtype=dtype), encoder_hidden_states=torch.randn(1, 128, 4096, dtype=dtype),
        pooled_projections=torch.randn(1, 768, dtype=dtype), timestep=torch.full((1,), 0.5, dtype=dtype),
        guidance=torch.full((1,), 3.5, dtype=dtype), img_ids=ids.reshape(-1, 3), txt_ids=torch.zeros(128, 3),
        return_dict=False)
    return net, inputs


def training(dtype, compiled, lora):
    net, inputs = flux(dtype)
    if lora:
        from peft import LoraConfig
        net.requires_grad_(False)
        net.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=LORA))
    net.enable_gradient_checkpointing()
    net.train()
    trained = [p for p in net.parameters() if p.requires_grad]
    optim = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.01)
    run = torch.compile(net) if compiled else net
    target = torch.randn(1, 256, 64)

    def step():
        loss = torch.nn.functional.mse_loss(run(**inputs)[0].float(), target)
        loss.backward()
        if lora:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optim.step()
        optim.zero_grad()
        return loss.item()
    return step


def sample(dtype, compiled):
    net, inputs = flux(dtype)
    net.eval()
    run = torch.compile(net) if compiled else net
    return lambda: run(**inputs)


def vae(dtype, compiled, encode):
    from diffusers import AutoencoderKL
    torch.manual_seed(1)
    net = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        norm_num_groups=32, act_fn="silu", down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, use_quant_conv=False, use_post_quant_conv=False).to(dtype).eval()
    half = net.encoder if encode else net.decoder
    x = torch.randn(1, 3, 512, 512, dtype=dtype) if encode else torch.randn(1, 16, 64, 64, dtype=dtype)
    run = torch.compile(half) if compiled else half
    return lambda: run(x)


def t5(dtype, compiled):
    from transformers import T5Config, T5EncoderModel
    torch.manual_seed(1)
    net = T5EncoderModel(T5Config(
        vocab_size=32128, d_model=1024, d_kv=64, d_ff=2816, num_layers=24, num_heads=16,
        feed_forward_proj="gated-gelu")).to(dtype).eval()
    ids = (torch.arange(256)[None] * 7919) % 32128
    run = torch.compile(net) if compiled else net
    return lambda: run(input_ids=ids)


def make(name, dtype, compiled):
    if name in ("lora", "full"):
        return training(dtype, compiled, name == "lora")
    if name in ("encode", "decode"):
        return vae(dtype, compiled, name == "encode")
    return {"sample": sample, "t5": t5}[name](dtype, compiled)


def peak_kib():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--dtype", default="f32")
    a.add_argument("--compile", action="store_true")
    a.add_argument("name")
    a = a.parse_args()
    work = make(a.name, torch.bfloat16 if a.dtype == "bf16" else torch.float32, a.compile)
    context = torch.enable_grad() if a.name in ("lora", "full") else torch.no_grad()
    with context:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        work()
        print("ready", torch.get_num_threads(), flush=True)
        for line in sys.stdin:
            if line.startswith("peak"):
                print(peak_kib(), flush=True)
                continue
            t0 = time.monotonic()
            work()
            print(time.monotonic() - t0, flush=True)


if __name__ == "__main__":
    main()
