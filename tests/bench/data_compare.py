"""Work on data here and in Python, side by side on one core: `make bench-data PYTHON=...`; see data.sh.

    B=build data_compare.py FOLDER [--rounds N] [--json FILE]

FOLDER is what data_make.py filled.  Each side does a thing in turn, --rounds times; printed are the medians and by how much dt is
faster.  The times are of the work, without starting a program or loading a module, but for those rows that say so."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
import numpy as np
from PIL import Image

B = os.environ.get("B", "build")
TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROWS = []


def clock(work, *args):
    start = time.perf_counter()
    work(*args)
    return time.perf_counter() - start


def driver(*args):
    """Seconds that bench-data took, its other numbers, and its comments."""
    out = subprocess.run([f"{B}/bench-data", *map(str, args)], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    seconds, *rest = out[-1].split()
    return float(seconds), rest, [line[2:] for line in out if line.startswith("# ")]


def in_turn(rounds, *sides):
    return [list(times) for times in zip(*[[side() for side in sides] for _ in range(rounds)])]


def show(what, mine, others, note=""):
    """others: name -> seconds of each round."""
    ms = lambda t: "%.1f (%.1f..%.1f)" % tuple(1e3 * v for v in (statistics.median(t), min(t), max(t)))
    ratio = {k: statistics.median(t) / statistics.median(mine) for k, t in others.items()}
    ROWS.append({"what": what, "dt": mine, "others": others, "ratio": ratio, "note": note})
    for k in others or [""]:
        print("%-44s %-24s %-34s %7s  %s" % (what, ms(mine), "%s %s" % (k, ms(others[k])) if k else "",
                                            "%.2fx" % ratio[k] if k else "", note), flush=True)


def names(folder, which):
    with open(f"{folder}/{which}") as f:
        return f.read().splitlines()


# --- sizes ---

def pillow_sizes(files):
    px = 0
    for name in files:
        with Image.open(name) as im:
            px += im.width * im.height
    return px


SIZE_SCRIPT = """
import json, os, sys
from PIL import Image
folder, out = sys.argv[1:]
data = json.load(open(folder + "/metadata.json"))
for item in data:
    with Image.open(os.path.join(folder, item["file_path"])) as im:
        item["width"], item["height"] = im.size
json.dump(data, open(out, "w"), indent=2)
"""


def sizes(folder, rounds):
    files = names(folder, "files")
    what = f"sizes of {len(files)} pictures"
    px = pillow_sizes(files)
    _, mine, _ = driver("probe", f"{folder}/files")
    if int(mine[0]) != px:
        sys.exit(f"the sizes differ: {mine[0]} px, Pillow {px}")
    dt, pil = in_turn(rounds, lambda: driver("probe", f"{folder}/files")[0], lambda: clock(pillow_sizes, files))
    show(what, dt, {"Pillow": pil})
    bucket = [f"{B}/bin/dt-bucket", "-q", "--dataloader_num_workers=1", "--enable_bucket", "--num_train_epochs=1",
              f"--train_data_dir={folder}", f"--train_data_meta={folder}/metadata.json", "-o", f"{folder}/plan"]
    script = [sys.executable, "-c", SIZE_SCRIPT, folder, f"{folder}/sizes.json"]
    dt, pil = in_turn(rounds, lambda: clock(subprocess.check_call, bucket), lambda: clock(subprocess.check_call, script))
    show(what + ", dt-bucket and script", dt, {"Pillow": pil}, "both from start to end")


# --- decode and resize ---

def pillow_bucket(files, fits):
    ims = []
    for name, (rw, rh, x, y, w, h) in zip(files, fits):
        im = Image.open(name).convert("RGB").resize((rw, rh), Image.Resampling.BILINEAR)
        ims.append(im.crop((x, y, x + w, y + h)))
    return ims


def difference(path, ims):
    raw, at, means = np.fromfile(path, "u1"), 0, []
    for im in ims:
        a = np.asarray(im, "i2")
        means.append(np.abs(a - raw[at:at + a.size].reshape(a.shape)).mean())
        at += a.size
    return max(means)


def buckets(folder, rounds, side):
    files, worst, total = names(folder, "distinct"), 0, {}
    for ext in "jpg", "png", "webp":
        some = [f for f in files if f.endswith(ext)]
        with open(f"{folder}/some", "w") as f:
            f.write("\n".join(some) + "\n")
        fits = [tuple(map(int, c.split())) for c in driver("bucket", side, f"{folder}/some", f"{folder}/raw")[2]]
        mean = difference(f"{folder}/raw", pillow_bucket(some, fits))
        worst = max(worst, mean)
        dt, pil = in_turn(rounds, lambda: driver("bucket", side, f"{folder}/some")[0], lambda: clock(pillow_bucket, some, fits))
        total = {"dt": [a + b for a, b in zip(total.get("dt", [0] * rounds), dt)],
                 "Pillow": [a + b for a, b in zip(total.get("Pillow", [0] * rounds), pil)]}
        show(f"{len(some)} {ext} to buckets of {side}", dt, {"Pillow": pil}, "mean difference at most %.3f" % mean)
    show(f"{len(files)} pictures to buckets of {side}", total["dt"], {"Pillow": total["Pillow"]})
    if worst >= 1:
        sys.exit(f"the pictures differ from Pillow's by {worst} of 255 on average")


# --- captions ---

def captions(folder, rounds):
    from transformers import AutoTokenizer
    where = os.environ.get("TOKENIZERS")
    for kind, most in ("clip", 77), ("t5", 512):
        path = f"{where}/{kind}" if where else f"{TREE}/tests/golden/tok_small_{kind}"
        fast = AutoTokenizer.from_pretrained(path).backend_tokenizer
        fast.enable_truncation(most)
        fast.no_padding()
        texts = names(folder, "captions")
        ids = [e.ids for e in fast.encode_batch(texts)]
        _, mine, _ = driver("tokenize", path, most, f"{folder}/captions")
        if [int(v) for v in mine] != [sum(map(len, ids)), sum((i + 1) * v for row in ids for i, v in enumerate(row))]:
            sys.exit(f"{kind}: the ids differ")
        dt, rust = in_turn(rounds, lambda: driver("tokenize", path, most, f"{folder}/captions")[0],
                           lambda: clock(fast.encode_batch, texts))
        show(f"{len(texts)} captions, {kind}", dt, {"tokenizers": rust}, "same ids" + ("" if where else "; a small vocabulary"))


# --- loading ---

def load(folder, rounds):
    import torch
    from safetensors.torch import load_file
    torch.set_num_threads(1)
    path = f"{folder}/model.safetensors"
    gib = os.path.getsize(path) / 2**30
    sums = lambda d: sum(int(v.view(torch.int64).sum()) for v in d.values()) % 2**64
    copied = lambda: {k: v.clone() for k, v in load_file(path).items()}
    cat = lambda: subprocess.check_call(["cat", path], stdout=subprocess.DEVNULL)
    cat()
    if int(driver("load", path)[1][1]) != sums(load_file(path)):
        sys.exit("the sums of the weights differ")
    dt, python = in_turn(rounds, lambda: float(driver("load", path)[1][0]), lambda: clock(load_file, path))
    show("%.1f GiB of frozen weights, until ready" % gib, dt, {"load_file": python}, "nothing is read yet, file in the page cache")
    dt, python, read = in_turn(rounds, lambda: driver("load", path)[0], lambda: clock(lambda: sums(load_file(path))), lambda: clock(cat))
    show("%.1f GiB of frozen weights, all read once" % gib, dt, {"load_file": python, "cat": read}, "the same sum of all numbers")
    dt, python = in_turn(rounds, lambda: float(driver("copy", path)[1][0]), lambda: clock(copied))
    show("%.1f GiB of weights to be trained" % gib, dt, {"load_file, clone": python}, "copied")


# --- start-up ---

def first_step(args):
    """Seconds from starting the program until it says that step 1 is done."""
    r, w = os.pipe()
    start = time.perf_counter()
    p = subprocess.Popen([f"{B}/bin/dt-train", "lora", *args, "--max_train_steps=1", f"--progress={w}", "-q"],
                         pass_fds=[w])
    os.close(w)
    seconds = None
    with os.fdopen(r) as f:
        for line in f:
            said = json.loads(line)
            if seconds is None and said["job"] == "train" and said["step"] >= 1:
                seconds = time.perf_counter() - start
    if p.wait() or seconds is None:
        sys.exit("dt-train failed")
    return seconds


def startup(folder, rounds):
    out, data = f"{folder}/run", f"{TREE}/examples/concept"
    model = f"--pretrained_model_name_or_path={TREE}/examples/tiny-flux"
    plan = ["--train_data_dir=" + data, f"--train_data_meta={data}/metadata.json", "--image_sample_size=128", "--enable_bucket",
            "--train_batch_size=1"]
    subprocess.check_call([f"{B}/bin/dt-bucket", *plan, "-q", "-o", f"{folder}/plan"])
    subprocess.check_call([f"{B}/bin/dt-cache-latents", "--model", f"{TREE}/examples/tiny-flux", "--plan", f"{folder}/plan", "-q",
                           "-o", f"{folder}/cache"])

    def fresh(*args):
        subprocess.check_call(["rm", "-rf", out])
        return first_step([model, f"--output_dir={out}", *args])
    cached, raw = in_turn(rounds, lambda: fresh("--plan", f"{folder}/plan", "--latents", f"{folder}/cache"), lambda: fresh(*plan))
    show("dt-train to the first step, cached", cached, {})
    show("dt-train to the first step, from pictures", raw, {})


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--json", default=f"{B}/bench-data.json")
    a = p.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print("%-44s %-24s %-34s %7s" % ("one core", "dt, ms", "Python, ms", "ratio"))
    startup(a.folder, a.rounds)
    sizes(a.folder, a.rounds)
    buckets(a.folder, a.rounds, 512)
    captions(a.folder, a.rounds)
    if os.path.exists(f"{a.folder}/model.safetensors"):
        load(a.folder, min(a.rounds, 3))
    with open(a.json, "w") as f:
        json.dump({"date": time.strftime("%Y-%m-%d"), "rows": ROWS}, f, indent=1)


if __name__ == "__main__":
    main()
