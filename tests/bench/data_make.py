"""Makes what data_compare.py works on: python data_make.py FOLDER FILES DISTINCT GIB.

Pictures like photographs, as far as decoding time goes: 1/f noise in correlated colours, with sharp shapes on it,
0.3 to 2 MP, JPEG (quality 90, 4:2:0), PNG and WebP (quality 85) as 3 : 1 : 1."""
import json
import os
import random
import shutil
import struct
import sys

import numpy as np
from PIL import Image, ImageDraw

folder, files, distinct, gib = sys.argv[1], *map(int, sys.argv[2:])
rng = np.random.default_rng(1)
KINDS = [("jpg", dict(quality=90)), ("png", {}), ("jpg", dict(quality=90)), ("webp", dict(quality=85, method=2)),
         ("jpg", dict(quality=90))]


def noise(h, w):
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :]
    amp = 1 / np.maximum(np.hypot(fy, fx), 1 / max(h, w)) ** 1.4
    x = np.fft.irfft2(amp * np.exp(2j * np.pi * rng.random(amp.shape)), (h, w))
    return x / x.std()


def picture(w, h):
    grey = noise(h, w)
    rgb = np.stack([128 + 48 * (grey + 0.4 * noise(h, w)) for _ in range(3)], -1) + rng.normal(0, 1.5, (h, w, 3))
    im = Image.fromarray(rgb.clip(0, 255).astype("u1"))
    draw = ImageDraw.Draw(im)
    for _ in range(12):
        x, y, s = rng.integers(0, w), rng.integers(0, h), rng.integers(8, 120)
        box = [int(x), int(y), int(x + s), int(y + s)]
        (draw.ellipse if rng.random() < .5 else draw.rectangle)(box, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return im


WORDS = """a the of in on with at by portrait photo photograph painting illustration woman man girl boy child cat dog horse
bird city street mountain forest river lake ocean beach sky cloud sunset sunrise night light soft dramatic cinematic
lighting background foreground bokeh detailed highly intricate sharp focus 4k 8k masterpiece vintage modern abstract
minimalist wearing holding standing sitting walking running looking smiling red blue green yellow orange purple black
white golden silver wooden metal glass stone old young beautiful tall small large wide close-up shot, from above below
watercolor oil digital art style trending depth field lens f/1.8 35mm film grain architecture interior kitchen window
chair table lamp flowers garden bicycle car train station snow rain fog steampunk cyberpunk neon café señorita Tokyo
Paris 1920s 3d render unreal engine octane symmetrical composition; it's two, three. "quoted" (parenthesised)""".split()


def captions(path, n):
    r = random.Random(1)
    syllables = ["ka", "lo", "mir", "ten", "sha", "ru", "vel", "ost", "in", "qua", "zy", "bra"]
    with open(path, "w") as f:
        for _ in range(n):
            words = [r.choice(WORDS) for _ in range(int(min(80, max(6, r.lognormvariate(3.2, .5)))))]
            for _ in range(r.randrange(4)):         # names, which no vocabulary has whole
                words.insert(r.randrange(len(words)), "".join(r.choices(syllables, k=r.randint(2, 4))).capitalize())
            f.write(" ".join(words) + "\n")


def weights(path, n):
    """n matrices of 64 MiB in bf16; the header as the reference library writes it, to a multiple of 8 bytes."""
    header = {f"block.{i}.weight": {"dtype": "BF16", "shape": [8192, 4096], "data_offsets": [i << 26, i + 1 << 26]} for i in range(n)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for i in range(n):
            f.write(random.Random(i).randbytes(1 << 20) * 64)


os.makedirs(folder, exist_ok=True)
names = []
for i in range(distinct):
    px, ratio = rng.uniform(.3e6, 2e6), rng.choice([1, 3 / 4, 4 / 3, 2 / 3, 3 / 2, 9 / 16, 16 / 9])
    ext, how = KINDS[i % len(KINDS)]
    names.append(f"{folder}/{i:05d}.{ext}")
    picture(int((px * ratio) ** .5), int((px / ratio) ** .5)).save(names[-1], **how)
with open(f"{folder}/distinct", "w") as f:
    f.write("\n".join(names) + "\n")
for i in range(distinct, files):
    names.append(f"{folder}/{i:05d}.{names[i % distinct].split('.')[-1]}")
    shutil.copyfile(names[i % distinct], names[-1])
with open(f"{folder}/files", "w") as f:
    f.write("\n".join(names) + "\n")
json.dump([{"file_path": os.path.basename(n), "text": "a picture"} for n in names], open(f"{folder}/metadata.json", "w"))
captions(f"{folder}/captions", 10000)
if gib:
    weights(f"{folder}/model.safetensors", 16 * gib)
