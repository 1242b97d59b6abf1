"""tiny-flux/: a whole FLUX.1 model folder as people have it, and what diffusers.FluxPipeline makes with it.

The folder: transformer in bf16 and two shards, vae in fp16, text_encoder in fp32, text_encoder_2 in bf16, byte-level
BPE and SentencePiece tokenizers of a few hundred tokens, and flux1-tiny.safetensors, the same transformer under the
names of Black Forest Labs' single file.

pipeline.safetensors    five prompts (metadata "prompts"): in.clip_ids, in.t5_ids [5, 77 or 64], out.prompt_embeds,
                        out.pooled [5, 32];  images of the first two at 24x40 px: in.latents [2, 4, 12, 20],
                        out.sigmas, out.latents.K after step K = 0..3 (latents, not tokens), out.decoded [2, 3, 24, 40]
                        in about -1..1, out.image clamped to 0..1
                        in.tiled.rgb [56, 80, 3] u8 -> out.tiled.{mean,logvar} [4, 28, 40] in tiles of 32 px, and
                        in.tiled.latents [4, 28, 40] -> out.tiled.image [56, 80, 3] in 0..1
"""
import inspect
import json
import os
import shutil
from collections import Counter

import sentencepiece
import torch
from diffusers import (AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel)
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from common import HERE, config_of, generator, randn, randomise, save, write_tensors
from flux import model_b, pack, unpack
from schedule import FLUX
from text import clip_name
from vae import model_a

ROOT = os.path.join(HERE, "tiny-flux")
PROMPTS = [
    "a photo of a small red cat",
    "",
    "A Grumpy CAT, sitting on the old windowsill; it's 42 years old!",
    "un café à la façade bleue, 猫 and 🐱",
    "the quick brown fox jumps over the lazy dog while the old bus waits on the street and nobody knows why it does "
    "not drive on to the harbour where white ships are lying in the morning sun as they have for years and years, and "
    "where a man sells small green apples, bread, salt and fish to all those people who come by every day of the week",
]
CORPUS = " ".join(PROMPTS).replace("猫", " ").replace("🐱", " ") + """
 a drawing of a cat with a red hat. a blue car in the rain on a road by night. portrait of an old man, oil on canvas, warm
 light. two dogs and three birds under a tree, the sky is yellow. a bowl of apples on a wooden table near the window.
 small house by the sea with white walls; the waves are high. watercolour of flowers, simple, on white paper.
"""


def bytes_to_unicode():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(rest)}


def clip_tokenizer(folder, merges=120):
    """Learns merges on CORPUS; ids in CLIP's order: bytes, bytes ending a word, merges, begin, end."""
    alphabet = list(bytes_to_unicode().values())
    table = bytes_to_unicode()
    words = Counter(CORPUS.lower().split())
    words = {tuple(table[b] for b in w.encode()[:-1]) + (table[w.encode()[-1]] + "</w>",): n for w, n in words.items()}
    rules = []
    for _ in range(merges):
        pairs = Counter()
        for w, n in words.items():
            for pair in zip(w, w[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        rules.append(best)
        merged = {}
        for w, n in words.items():
            out = []
            for s in w:
                if out and (out[-1], s) == best:
                    out[-1] += s
                else:
                    out.append(s)
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        words = merged
    tokens = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in rules]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(folder)
    write(folder, "vocab.json", {t: i for i, t in enumerate(tokens)}, None)
    with open(os.path.join(folder, "merges.txt"), "w") as f:
        f.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in rules))
    write(folder, "special_tokens_map.json", dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>",
                                                  pad_token="<|endoftext|>", unk_token="<|endoftext|>"))
    write(folder, "tokenizer_config.json", dict(
        tokenizer_class="CLIPTokenizer", model_max_length=77, bos_token="<|startoftext|>", eos_token="<|endoftext|>",
        pad_token="<|endoftext|>", unk_token="<|endoftext|>", do_lower_case=True, add_prefix_space=False))
    return len(tokens)


def t5_tokenizer(folder, size=120):
    """A unigram model with T5's special ids (pad 0, end 1, unknown 2); sentinels <extra_id_N> follow the pieces."""
    os.makedirs(folder)
    prefix = os.path.join(folder, "spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split(". ")), model_prefix=prefix, vocab_size=size, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, character_coverage=1.0, minloglevel=2)
    os.remove(prefix + ".vocab")
    extra = [f"<extra_id_{i}>" for i in range(4)]
    names = dict(eos_token="</s>", pad_token="<pad>", unk_token="<unk>", additional_special_tokens=extra)
    write(folder, "special_tokens_map.json", names)
    write(folder, "tokenizer_config.json", dict(names, tokenizer_class="T5Tokenizer", model_max_length=512,
                                                extra_ids=len(extra)))
    return size + len(extra)


def write(folder, name, value, indent=2):
    with open(os.path.join(folder, name), "w") as f:
        json.dump(value, f, indent=indent, ensure_ascii=False)
        f.write("\n")


def shards(model, folder, n, dtype):
    """The tensors in n files of about the same size with an index, as save_pretrained does for large models."""
    os.makedirs(folder)
    state = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}
    total, at, parts = sum(v.nbytes for v in state.values()), 0, [{} for _ in range(n)]
    for k, v in state.items():
        parts[min(n - 1, at * n // total)][k] = v
        at += v.nbytes
    index = {}
    for i, part in enumerate(parts):
        name = f"diffusion_pytorch_model-{i + 1:05}-of-{n:05}.safetensors"
        write_tensors(os.path.join(folder, name), part)
        index |= {k: name for k in part}
    write(folder, "diffusion_pytorch_model.safetensors.index.json",
          dict(metadata=dict(total_size=total), weight_map=index))
    config = dict(_class_name="FluxTransformer2DModel", _diffusers_version="0.30.0", **config_of(model))
    write(folder, "config.json", config)


def single(model, folder, stem, dtype, rename, **config):
    os.makedirs(folder)
    state = {rename(k): v.detach().to(dtype).contiguous() for k, v in model.named_parameters()}
    write_tensors(os.path.join(folder, stem + ".safetensors"), state)
    write(folder, "config.json", config | config_of(model))


def bfl(state):
    """The transformer under the names of FLUX.1's own single file (spec: q, k, v in one; final shift before scale)."""
    out = {}

    def put(dst, *src):
        for kind in ("weight", "bias"):
            out[f"{dst}.{kind}"] = torch.cat([state[f"{s}.{kind}"] for s in src])

    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    embedders = {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder", "vector_in": "text_embedder"}
    for dst, src in embedders.items():
        put(dst + ".in_layer", f"time_text_embed.{src}.linear_1")
        put(dst + ".out_layer", f"time_text_embed.{src}.linear_2")
    for i in range(2):
        s, d = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        for to, norm, qkv, qk, proj, ff in (
                ("img", "norm1", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), "to_out.0", "ff"),
                ("txt", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"),
                 "to_add_out", "ff_context")):
            put(f"{d}{to}_mod.lin", f"{s}{norm}.linear")
            put(f"{d}{to}_attn.qkv", *(f"{s}attn.{n}" for n in qkv))
            put(f"{d}{to}_attn.proj", f"{s}attn.{proj}")
            put(f"{d}{to}_mlp.0", f"{s}{ff}.net.0.proj")
            put(f"{d}{to}_mlp.2", f"{s}{ff}.net.2")
            for n, m in zip(("query_norm", "key_norm"), qk):
                out[f"{d}{to}_attn.norm.{n}.scale"] = state[f"{s}attn.{m}.weight"]
        s, d = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        put(d + "modulation.lin", s + "norm.linear")
        put(d + "linear1", s + "attn.to_q", s + "attn.to_k", s + "attn.to_v", s + "proj_mlp")
        put(d + "linear2", s + "proj_out")
        out[d + "norm.query_norm.scale"] = state[s + "attn.norm_q.weight"]
        out[d + "norm.key_norm.scale"] = state[s + "attn.norm_k.weight"]
    put("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    return {k: v.clone() for k, v in out.items()}


def folder():
    shutil.rmtree(ROOT, ignore_errors=True)
    os.makedirs(ROOT)
    transformer = model_b()
    shards(transformer, os.path.join(ROOT, "transformer"), 2, torch.bfloat16)
    write_tensors(os.path.join(ROOT, "flux1-tiny.safetensors"),
                  bfl({k: v.bfloat16() for k, v in transformer.state_dict().items()}))
    single(model_a(), os.path.join(ROOT, "vae"), "diffusion_pytorch_model", torch.float16, lambda n: n,
           _class_name="AutoencoderKL", _diffusers_version="0.30.0")

    vocab = clip_tokenizer(os.path.join(ROOT, "tokenizer"))
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                        num_attention_heads=2, hidden_act="quick_gelu", projection_dim=32,
                                        bos_token_id=0, eos_token_id=2, pad_token_id=1))
    single(randomise(clip, 6), os.path.join(ROOT, "text_encoder"), "model", torch.float32, clip_name,
           architectures=["CLIPTextModel"], torch_dtype="float32")
    vocab = t5_tokenizer(os.path.join(ROOT, "tokenizer_2"))
    t5 = T5EncoderModel(T5Config(vocab_size=vocab + 4, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                                 feed_forward_proj="gated-gelu", dropout_rate=0.1))
    single(randomise(t5, 7), os.path.join(ROOT, "text_encoder_2"), "model", torch.bfloat16, lambda n: n,
           architectures=["T5EncoderModel"], torch_dtype="bfloat16")

    os.makedirs(os.path.join(ROOT, "scheduler"))
    write(os.path.join(ROOT, "scheduler"), "scheduler_config.json",
          dict(_class_name="FlowMatchEulerDiscreteScheduler", _diffusers_version="0.30.0", num_train_timesteps=1000,
               **FLUX))
    write(ROOT, "model_index.json", {
        "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"], "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"]})


def check(pipe):
    """What was written is what was meant, also as the libraries read it."""
    for k, p in model_b().named_parameters():
        assert torch.equal(pipe.transformer.get_parameter(k), p), k
    for name, module, rename in (("text_encoder", pipe.text_encoder, clip_name),
                                 ("text_encoder_2", pipe.text_encoder_2, lambda n: n)):
        state = load_file(os.path.join(ROOT, name, "model.safetensors"))
        for k, p in module.named_parameters():
            assert torch.equal(state[rename(k)].float(), p), f"{name}: {k}"
    # diffusers' own converter knows one width only
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    scope = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", "inner_dim = 32"), scope)
    back = scope["convert_flux_transformer_checkpoint_to_diffusers"](
        load_file(os.path.join(ROOT, "flux1-tiny.safetensors")))
    for k, p in pipe.transformer.state_dict().items():
        assert torch.equal(back[k].float(), p), f"single file: {k}"
    # The SentencePiece model itself and the tokenizer that transformers makes of it agree.
    sp = sentencepiece.SentencePieceProcessor(os.path.join(ROOT, "tokenizer_2", "spiece.model"))
    for p in PROMPTS:
        assert pipe.tokenizer_2(p).input_ids == sp.encode(p) + [1], p
    assert pipe.tokenizer("a")["input_ids"][0] == len(pipe.tokenizer) - 2


@torch.no_grad()
def run(pipe):
    size = dict(padding="max_length", truncation=True, return_tensors="pt")
    t = {"in.clip_ids": pipe.tokenizer(PROMPTS, max_length=77, **size).input_ids.int(),
         "in.t5_ids": pipe.tokenizer_2(PROMPTS, max_length=64, **size).input_ids.int()}
    embeds, pooled, _ = pipe.encode_prompt(prompt=PROMPTS, prompt_2=None, max_sequence_length=64)
    t |= {"out.prompt_embeds": embeds, "out.pooled": pooled}

    h, w = 12, 20
    t["in.latents"] = randn(generator(8), 2, 4, h, w)

    def keep(_, step, __, values):
        t[f"out.latents.{step}"] = unpack(values["latents"], h, w)
        return values

    args = dict(prompt=PROMPTS[:2], height=24, width=40, num_inference_steps=4, guidance_scale=3.5,
                latents=pack(t["in.latents"]), max_sequence_length=64)
    image = pipe(**args, output_type="pt", callback_on_step_end=keep).images
    z = t["out.latents.3"] / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    t |= {"out.sigmas": pipe.scheduler.sigmas, "out.decoded": pipe.vae.decode(z).sample, "out.image": image}
    assert torch.allclose(image, (t["out.decoded"] / 2 + 0.5).clamp(0, 1), atol=1e-6)
    return t


@torch.no_grad()
def tiled(vae):
    g = generator(9)
    vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor = 32, 16, 0.25
    vae.enable_tiling()
    t = {"in.tiled.rgb": torch.randint(0, 256, (56, 80, 3), generator=g, dtype=torch.uint8),
         "in.tiled.latents": randn(g, 4, 28, 40)}
    posterior = vae.encode(t["in.tiled.rgb"].permute(2, 0, 1)[None] / 127.5 - 1).latent_dist
    t |= {"out.tiled.mean": posterior.mean[0], "out.tiled.logvar": posterior.logvar[0]}
    z = t["in.tiled.latents"][None] / vae.config.scaling_factor + vae.config.shift_factor
    t["out.tiled.image"] = (vae.decode(z).sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
    vae.disable_tiling()
    return t


def main():
    folder()
    pipe = FluxPipeline.from_pretrained(ROOT, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    check(pipe)
    save("pipeline", run(pipe) | tiled(pipe.vae), prompts=PROMPTS, folder="tiny-flux",
         max_sequence_length="64", guidance="3.5", steps="4")


if __name__ == "__main__":
    main()
