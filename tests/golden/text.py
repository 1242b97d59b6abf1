"""Text encoders: clip_a (quick_gelu, legacy eos_token_id 2), clip_b (gelu, id of the end token), t5."""
import torch
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from common import config_of, generator, gradients, randomise, save, weights

CLIP = dict(vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=77, layer_norm_eps=1e-5, bos_token_id=97, pad_token_id=98)
T5 = dict(vocab_size=99, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
          relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
          dropout_rate=0.0, tie_word_embeddings=True)


def clip_name(n):
    """Files have the prefix text_model., which newer versions of transformers drop in memory."""
    return n if n.startswith(("text_model.", "text_projection")) else "text_model." + n


def clip_ids(g, n, eos, pad):
    """Begin token, words, end token, padding: three captions, one of them empty, one that fills all places."""
    ids = torch.full((3, n), pad)
    for row, words in zip(ids, (9, 0, n - 2)):
        row[0] = 97
        row[1:1 + words] = torch.randint(3, 97, (words,), generator=g)
        row[1 + words] = eos
    return ids


def clip(name, act, eos, pad, seed):
    eos_id = 2 if eos == 98 else eos
    m = randomise(CLIPTextModel(CLIPTextConfig(**CLIP, hidden_act=act, eos_token_id=eos_id)), seed)
    ids = clip_ids(generator(seed + 1), 77, eos, pad)
    y = m(input_ids=ids, output_hidden_states=True)
    outputs = {"last_hidden": y.last_hidden_state, "hidden_2": y.hidden_states[-2], "pooled": y.pooler_output}
    t = weights(m, clip_name) | gradients(m, outputs, {"ids": ids.int()}, seed + 2, clip_name)
    save(name, t, config_of(m))


def main():
    clip("clip_a", "quick_gelu", 98, 98, 51)
    clip("clip_b", "gelu", 5, 0, 61)

    m = randomise(T5EncoderModel(T5Config(**T5)), 71)
    g = generator(72)
    ids = torch.zeros(2, 150, dtype=torch.int64)    # longer than max_distance, so that every bucket is met
    for row, words in zip(ids, (6, 120)):
        row[:words] = torch.randint(3, 99, (words,), generator=g)
        row[words] = 1
    y = m(input_ids=ids).last_hidden_state
    save("t5", weights(m) | gradients(m, {"last_hidden": y}, {"ids": ids.int()}, 73), config_of(m))


if __name__ == "__main__":
    main()
