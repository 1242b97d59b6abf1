"""Golden files: what PyTorch, diffusers, transformers and peft compute for tiny models.

To make them again (a few seconds, no network; the versions used are in each file's metadata):

    python3 -m venv venv && venv/bin/pip install torch diffusers transformers peft safetensors sentencepiece
    cd tests/golden
    for f in flux vae vae_single text schedule objective train train_vae pipeline lora_check lora_text; do ../../venv/bin/python $f.py; done

Everything is fp32 on one CPU thread from fixed seeds; another processor or version may differ in the last bits, far
below the tolerances of tests/golden.c.  A file holds

    w.NAME        weights under their diffusers or transformers names.  They are stored as bf16 and were rounded to bf16
                  before use, so that nothing is lost; a file whose metadata has "weights": FILE uses that file's
    in.NAME       inputs
    out.NAME      outputs
    in.dy.NAME    fixed random tensors: the loss is sum over outputs of sum(out.NAME * in.dy.NAME)
    grad.w.NAME   its gradient for every parameter
    grad.in.NAME  and for every float input that is differentiable

and in its metadata "config" (JSON, as in config.json) and "versions".  Layouts are torch's: images are [B, C, H, W].
"""
import json
import math
import os

import diffusers
import peft
import torch
import transformers

torch.set_num_threads(1)
diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()
torch.use_deterministic_algorithms(True)

HERE = os.path.dirname(os.path.abspath(__file__))


def versions():
    return " ".join(f"{m.__name__}={m.__version__.split('+')[0]}" for m in (torch, diffusers, transformers, peft))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(g, *shape):
    return torch.randn(*shape, generator=g)


def randomise(model, seed):
    """Weights of every kind and no zeros, so that each one matters to the output; representable in bf16."""
    g = generator(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = randn(g, *p.shape)
            if p.ndim > 1:
                fan_in = p[0].numel()
                x *= 1.0 if "embedding" in name or "shared" in name else 1 / math.sqrt(fan_in)
            elif name.endswith("bias"):
                x *= 0.1
            else:
                x = 1 + 0.1 * x
            p.copy_(x.bfloat16())
    return model.eval()


def weights(model, rename=lambda n: n):
    return {"w." + rename(n): p.detach().bfloat16() for n, p in model.named_parameters()}


def gradients(model, outputs, inputs, seed, rename=lambda n: n):
    """Tensors in.*, in.dy.*, out.*, grad.* of one run; the outputs are already computed."""
    g = generator(seed)
    dy = {n: randn(g, *y.shape) for n, y in outputs.items()}
    loss = sum((y * dy[n].to(y.dtype)).sum() for n, y in outputs.items())
    model.zero_grad()
    loss.backward()
    t = {"in." + n: x.detach() for n, x in inputs.items()}
    t |= {"in.dy." + n: y for n, y in dy.items()}
    t |= {"out." + n: y.detach() for n, y in outputs.items()}
    t |= {"grad.in." + n: x.grad for n, x in inputs.items() if x.grad is not None}
    for n, p in model.named_parameters():
        if p.grad is not None:
            t["grad.w." + rename(n)] = p.grad
    return t


def config_of(model):
    c = model.config
    c = dict(c) if not hasattr(c, "to_dict") else c.to_dict()
    return {k: v for k, v in c.items() if not k.startswith("_") and k not in ("transformers_version", "dtype")}


def write_tensors(path, tensors, meta={"format": "pt"}):
    """safetensors with sorted keys: the same tensors give the same bytes (the library's writer promises no order)."""
    kinds = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
             torch.int32: "I32", torch.uint8: "U8"}
    header, blobs, at = {"__metadata__": dict(sorted(meta.items()))}, [], 0
    for name, x in sorted(tensors.items(), key=lambda kv: (-kv[1].element_size(), kv[0])):
        blob = x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": kinds[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def save(name, tensors, config=None, **meta):
    path = os.path.join(HERE, name + ".safetensors")
    meta = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
    if config is not None:
        meta["config"] = json.dumps(config)
    write_tensors(path, tensors, {"versions": versions(), **meta})
    print(f"{name}.safetensors: {len(tensors)} tensors, {os.path.getsize(path)} bytes")
