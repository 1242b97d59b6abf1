"""LoRA files against those who read them: diffusers with peft, and ComfyUI's rules.

lora_all.safetensors        w.*: random A and B (rank 2, alpha 1) for every linear layer of flux_b; in.* and out.y: what peft makes
                            of them, at flux_b's inputs
lora_all_{comfy,peft,kohya}.safetensors
                            the same adapter as dt_lora_save writes it.  tests/unit/train_lora.c checks that it still writes
                            these tensors, and reads them; `DT_LORA_KEEP=DIR build/unit/train_lora` leaves new ones in DIR

    python lora_check.py            makes lora_all.safetensors
    python lora_check.py DIR        checks the three files of DIR: every key finds its layer, and loaded at strength 1 each gives out.y
"""
import inspect
import json
import os
import sys

import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file

from common import HERE, generator, randn, save
from flux import grid_ids, model_b, run

RANK, ALPHA, D = 2, 1, 32


def inputs():
    t = load_file(os.path.join(HERE, "flux_b.safetensors"))
    return {k[3:]: v for k, v in t.items() if k in ("in.img", "in.txt", "in.pooled", "in.t", "in.guidance")}


def predict(model):
    with torch.no_grad():
        return run(model, inputs(), grid_ids(7, 6, 10))


def linears(model):
    return [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]


def make():
    model = model_b()
    names = linears(model)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names), model)
    g, t = generator(101), {}
    with torch.no_grad():
        for n, p in sorted(model.named_parameters()):
            if "lora_" in n:
                p.copy_((randn(g, *p.shape) * (0.3 if "lora_A" in n else 0.2)).bfloat16())
                t["w." + n.replace(".default.", ".")] = p.detach().bfloat16()
    assert len(t) == 2 * len(names)
    save("lora_all", t | {"out.y": predict(model)}, weights="flux_b.safetensors", rank=str(RANK), alpha=str(ALPHA))


def close(what, y, want, other):
    error = ((y - want).norm() / want.norm()).item()
    assert error < 2e-6, f"{what}: relative error {error}"
    assert ((y - other).norm() / want.norm()).item() > 1e-2, f"{what}: has no effect"
    print(f"{what}: relative error {error:.1e}")


def matched(what, model, n):
    """The model has adapters on n layers, none of them as peft makes them (B is zero then)."""
    halves = {k: p for k, p in model.named_parameters() if "lora_" in k}
    assert len(halves) == 2 * n and all(p.abs().max() > 0 for p in halves.values()), (what, len(halves), n)
    print(f"{what}: {n} of {n} layers found")


def peft_loads(path):
    """peft alone: the config from the file's metadata, the tensors as they are."""
    with safe_open(path, "pt") as f:
        settings = json.loads(f.metadata()["lora_adapter_metadata"])
    model = model_b()
    config = LoraConfig(**{k.removeprefix("transformer."): v for k, v in settings.items()})
    inject_adapter_in_model(config, model)
    state = {k.removeprefix("transformer."): v.float() for k, v in load_file(path).items()}
    keys = set_peft_model_state_dict(model, state)
    assert not keys.unexpected_keys and not [k for k in keys.missing_keys if "lora_" in k], keys
    matched("peft in peft", model, len(state) // 2)
    return predict(model)


def diffusers_loads(path, only=None):
    """The pipeline's own loader, on a transformer of this size."""
    pipe = FluxPipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
                        transformer=model_b())
    state = load_file(path)
    if only is None:
        pipe.load_lora_weights(os.path.dirname(path), weight_name=os.path.basename(path))
    else:
        pipe.load_lora_weights({k: v.float() for k, v in state.items() if only(k)})
    if only is None:
        matched(os.path.basename(path) + " in diffusers", pipe.transformer, sum("lora_A" in k for k in state))
    return predict(pipe.transformer)


def comfy_targets():
    """ComfyUI's table for FLUX: name in a LoRA file -> (weight of the single file, first row, rows, swap halves)."""
    t = {}

    def add(ours, theirs, first=0, rows=None, swap=False):
        t["transformer." + ours] = (theirs, first, rows, swap)
        t["lora_unet_" + theirs.replace(".", "_")] = (theirs, 0, None, False)

    for b in range(2):
        o, d = f"transformer_blocks.{b}.", f"double_blocks.{b}."
        for i, (q, c) in enumerate((("to_q", "add_q_proj"), ("to_k", "add_k_proj"), ("to_v", "add_v_proj"))):
            add(o + "attn." + q, d + "img_attn.qkv", i * D, D)
            add(o + "attn." + c, d + "txt_attn.qkv", i * D, D)
        for ours, theirs in (("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj"),
                             ("norm1.linear", "img_mod.lin"), ("norm1_context.linear", "txt_mod.lin"),
                             ("ff.net.0.proj", "img_mlp.0"), ("ff.net.2", "img_mlp.2"),
                             ("ff_context.net.0.proj", "txt_mlp.0"), ("ff_context.net.2", "txt_mlp.2")):
            add(o + ours, d + theirs)
        o, d = f"single_transformer_blocks.{b}.", f"single_blocks.{b}."
        for i, q in enumerate(("attn.to_q", "attn.to_k", "attn.to_v")):
            add(o + q, d + "linear1", i * D, D)
        add(o + "proj_mlp", d + "linear1", 3 * D, 4 * D)
        add(o + "norm.linear", d + "modulation.lin")
        add(o + "proj_out", d + "linear2")
    for ours, theirs in (("timestep_embedder", "time_in"), ("guidance_embedder", "guidance_in"), ("text_embedder", "vector_in")):
        add(f"time_text_embed.{ours}.linear_1", theirs + ".in_layer")
        add(f"time_text_embed.{ours}.linear_2", theirs + ".out_layer")
    add("x_embedder", "img_in")
    add("context_embedder", "txt_in")
    add("proj_out", "final_layer.linear")
    add("norm_out.linear", "final_layer.adaLN_modulation.1", swap=True)
    return t


def comfy_loads(path):
    """Adds alpha/r up down to the weights of the single file, where ComfyUI's table says, and runs those in diffusers."""
    state, table = load_file(path), comfy_targets()
    w = {k: v.float() for k, v in load_file(os.path.join(HERE, "tiny-flux/flux1-tiny.safetensors")).items()}
    used = set()
    for x, (name, first, rows, swap) in table.items():
        for down, up in ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")):
            if x + up not in state:
                continue
            a, b = state[x + down].float(), state[x + up].float()
            alpha = state[x + ".alpha"].item() if x + ".alpha" in state else a.shape[0]
            delta = alpha / a.shape[0] * (b @ a)
            if swap:
                delta = torch.cat(delta.chunk(2)[::-1])
            rows = rows or delta.shape[0]
            w[name + ".weight"][first:first + rows] += delta
            used |= {x + down, x + up, x + ".alpha"}
    assert used >= set(state), sorted(set(state) - used)[:5]
    source = inspect.getsource(__import__("diffusers.loaders.single_file_utils", fromlist=["x"])
                               .convert_flux_transformer_checkpoint_to_diffusers)
    scope = {"torch": torch}
    exec(source.replace("inner_dim = 3072", f"inner_dim = {D}"), scope)
    model = model_b()
    model.load_state_dict(scope["convert_flux_transformer_checkpoint_to_diffusers"](w))
    return predict(model)


def small_kohya():
    """diffusers' converter knows the sizes of FLUX.1 only."""
    source = inspect.getsource(lora_conversion_utils._convert_kohya_flux_lora_to_diffusers)
    scope = vars(lora_conversion_utils)
    exec(source.replace("[3072, 3072, 3072, 12288]", f"[{D}, {D}, {D}, {4 * D}]"), scope)
    import diffusers.loaders.lora_pipeline as p
    p._convert_kohya_flux_lora_to_diffusers = scope["_convert_kohya_flux_lora_to_diffusers"]


def blocks_only(names):
    """out.y when only layers inside blocks are adapted."""
    model = model_b()
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names), model)
    t = load_file(os.path.join(HERE, "lora_all.safetensors"))
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.copy_(t["w." + n.replace(".default.", ".")])
    return predict(model)


def check(folder):
    want, base = load_file(os.path.join(HERE, "lora_all.safetensors"))["out.y"], predict(model_b())
    path = {k: os.path.join(folder, f"lora_all_{k}.safetensors") for k in ("comfy", "peft", "kohya")}
    close("comfy in ComfyUI", comfy_loads(path["comfy"]), want, base)
    close("kohya in ComfyUI", comfy_loads(path["kohya"]), want, base)
    close("peft in peft", peft_loads(path["peft"]), want, base)
    close("peft in diffusers", diffusers_loads(path["peft"]), want, base)
    close("comfy in diffusers", diffusers_loads(path["comfy"]), want, base)
    # diffusers loses the layers outside blocks of kohya's files (0.42: it forgets the prefix "transformer."); the rest is right.
    small_kohya()
    inside = [n for n in linears(model_b()) if "blocks." in n]
    close("kohya in diffusers, blocks", diffusers_loads(path["kohya"], lambda k: "_blocks_" in k), blocks_only(inside), base)


if __name__ == "__main__":
    check(sys.argv[1]) if len(sys.argv) > 1 else make()
