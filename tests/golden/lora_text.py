"""LoRA files that adapt the text encoders of tiny-flux too, and what diffusers, transformers and peft make with them.

lora_text_diffusers.safetensors     as FluxPipeline.save_lora_weights writes it: a layer of the transformer (rank 2, alpha 4),
                                    all linear layers of CLIP (rank 2, mlp.fc1 rank 4, alpha 1: over the rank a power of two, for
                                    diffusers multiplies bf16 tensors of kohya's layout by it)
lora_text_kohya.safetensors         the same adapters as sd-scripts' networks/lora_flux.py names them (lora_unet_, lora_te1_),
                                    and some of T5 (lora_te3_; rank 2, alpha 3), which diffusers 0.42 leaves out: peft applies them
lora_text.safetensors               two prompts (metadata "prompts"): out.pooled [2, 32], the same with both files;
                                    out.prompt_embeds [2, 16, 32] with T5's of the second; latents of the first prompt after two
                                    steps from the first of pipeline.safetensors: out.latents.{diffusers,kohya} [4, 12, 20]

    python lora_text.py             makes them
    python lora_text.py FILE        checks that diffusers gets the same of CLIP and the transformer from FILE, which another
                                    program made of one of them
"""
import json
import os
import sys
import tempfile

import torch
from diffusers import FluxPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file

from common import HERE, generator, randn, save, write_tensors
from flux import pack, unpack
from pipeline import PROMPTS, ROOT

TEXTS = [PROMPTS[0], PROMPTS[2]]
T, H, W = 16, 12, 20
DIT = LoraConfig(r=2, lora_alpha=4, target_modules=["single_transformer_blocks.0.proj_out"])
CLIP = LoraConfig(r=2, lora_alpha=1, rank_pattern={"fc1": 4},
                  target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"])
T5 = LoraConfig(r=2, lora_alpha=3, target_modules=["SelfAttention.q", "SelfAttention.o", "wi_1", "wo"])


def path_of(layout):
    return os.path.join(HERE, f"lora_text_{layout}.safetensors")


def pipeline():
    pipe = FluxPipeline.from_pretrained(ROOT, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def adapt(model, config, seed):
    """Random adapters, representable in bf16."""
    inject_adapter_in_model(config, model)
    g = generator(seed)
    for n, p in sorted(model.named_parameters()):
        if "lora_" in n:
            p.copy_((randn(g, *p.shape) * 0.5).bfloat16())
    return {k: v.detach().bfloat16() for k, v in get_peft_model_state_dict(model).items()}


def settings(config):
    return {k: sorted(v) if isinstance(v, set) else v for k, v in sorted(config.to_dict().items())}


def write_diffusers(dit, clip):
    with tempfile.TemporaryDirectory() as d:
        FluxPipeline.save_lora_weights(d, transformer_lora_layers=dit, text_encoder_lora_layers=clip,
                                       transformer_lora_adapter_metadata=settings(DIT),
                                       text_encoder_lora_adapter_metadata=settings(CLIP))
        with safe_open(os.path.join(d, "pytorch_lora_weights.safetensors"), "pt") as f:
            meta, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    meta["lora_adapter_metadata"] = json.dumps(dict(sorted(json.loads(meta["lora_adapter_metadata"]).items())))
    write_tensors(path_of("diffusers"), tensors, meta)


def write_kohya(dit, clip, t5):
    """sd-scripts: a model's modules, with underscores for dots, behind the name of the model."""
    out = {}
    for state, config, rename in (
            (dit, DIT, lambda n: "lora_unet_" + n.replace("single_transformer_blocks", "single_blocks").replace("proj_out", "linear2")),
            (clip, CLIP, lambda n: "lora_te1_text_model_" + n),         # transformers 4's names, which have text_model
            (t5, T5, lambda n: "lora_te3_" + n)):
        for k, v in state.items():
            name, half = k.removesuffix(".weight").rsplit(".", 1)
            stem = rename(name).replace(".", "_")
            out[stem + (".lora_down.weight" if half == "lora_A" else ".lora_up.weight")] = v
            out[stem + ".alpha"] = torch.tensor(float(config.lora_alpha)).bfloat16()
    write_tensors(path_of("kohya"), out, {"ss_network_module": "networks.lora_flux"})


@torch.no_grad()
def run(pipe):
    embeds, pooled, _ = pipe.encode_prompt(prompt=TEXTS, prompt_2=None, max_sequence_length=T)
    noise = load_file(os.path.join(HERE, "pipeline.safetensors"))["in.latents"][:1]
    x = pipe(prompt=TEXTS[0], height=2 * H, width=2 * W, num_inference_steps=2, guidance_scale=3.5, latents=pack(noise),
             max_sequence_length=T, output_type="latent").images
    return embeds, pooled, unpack(x, H, W)[0]


def far(a, b):
    return ((a - b).norm() / b.norm()).item()


def load(path, t5=False):
    pipe = pipeline()
    pipe.load_lora_weights(os.path.dirname(os.path.abspath(path)), weight_name=os.path.basename(path))
    halves = [p for m in (pipe.transformer, pipe.text_encoder) for n, p in m.named_parameters() if "lora_" in n]
    assert len(halves) == 2 * (1 + 12) and all(p.abs().max() > 0 for p in halves)      # peft's own B would be zero
    if t5:
        adapt(pipe.text_encoder_2, T5, 113)
    return run(pipe)


def make():
    pipe = pipeline()
    plain = run(pipe)
    dit, clip, t5 = (adapt(m, c, s) for m, c, s in (
        (pipe.transformer, DIT, 111), (pipe.text_encoder, CLIP, 112), (pipe.text_encoder_2, T5, 113)))
    write_diffusers(dit, clip)
    write_kohya(dit, clip, t5)
    a, b, all_ = load(path_of("diffusers")), load(path_of("kohya"), t5=True), run(pipe)
    # without their part for the text encoders the files give other latents by far
    less = pipeline()
    less.load_lora_weights({"transformer." + k: v.float() for k, v in dit.items()})
    for n, m in less.transformer.named_modules():
        if hasattr(m, "set_scale"):
            m.set_scale("default_0", DIT.lora_alpha / DIT.r)
    cut = run(less)
    assert torch.equal(a[0], plain[0]) and far(a[1], b[1]) < 1e-6
    assert all(far(x, y) < 2e-6 for x, y in zip(b, all_)), [far(x, y) for x, y in zip(b, all_)]
    print("pooled, states, latents of diffusers' file, of kohya's: relative distance from those without the text encoders'",
          *(f"{d:.2g}" for d in (far(a[1], cut[1]), far(b[0], cut[0]), far(a[2], cut[2]), far(b[2], cut[2]))))
    assert min(far(a[1], cut[1]), far(b[0], cut[0]), far(a[2], cut[2]), far(b[2], cut[2]), far(b[2], a[2]), far(cut[2], plain[2])) > 1e-2
    save("lora_text", {"out.pooled": b[1], "out.prompt_embeds": b[0], "out.latents.diffusers": a[2], "out.latents.kohya": b[2]},
         prompts=TEXTS, max_sequence_length=str(T), steps="2", guidance="3.5")


def check(path):
    want = load_file(os.path.join(HERE, "lora_text.safetensors"))
    _, pooled, latents = load(path)
    errors = far(pooled, want["out.pooled"]), far(latents, want["out.latents.diffusers"])
    print(f"{path} in diffusers: relative errors {errors[0]:.1e} {errors[1]:.1e}")
    assert max(errors) < 2e-5


if __name__ == "__main__":
    check(sys.argv[1]) if len(sys.argv) > 1 else make()
