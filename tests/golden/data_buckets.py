#!/usr/bin/env python3
"""Writes tests/golden/data_buckets.txt: the bucket, resize and crop of a grid of pictures as the reference trainers
compute them in Python floats (nearest two-decimal key, size / 512 * base / ratio floored to 16, int() of the
longer side, torchvision's centre crop), each picture by its own size.

Columns: w h base ratio | key index | bucket w h | resize w h | crop x y

python3 tests/golden/data_buckets.py
"""
import os

TABLE = """0.25:256x1024 0.26:256x992 0.27:256x960 0.28:256x928 0.32:288x896 0.33:288x864 0.35:288x832 0.4:320x800
0.42:320x768 0.48:352x736 0.5:352x704 0.52:352x672 0.57:384x672 0.6:384x640 0.68:416x608 0.72:416x576 0.78:448x576
0.82:448x544 0.88:480x544 0.94:480x512 1.0:512x512 1.07:512x480 1.13:544x480 1.21:544x448 1.29:576x448 1.38:576x416
1.46:608x416 1.67:640x384 1.75:672x384 2.0:704x352 2.09:736x352 2.4:768x320 2.5:800x320 2.89:832x288 3.0:864x288
3.11:896x288 3.62:928x256 3.75:960x256 3.88:992x256 4.0:1024x256"""
RATIOS = {k: [float(v) for v in hw.split("x")] for k, hw in (e.split(":") for e in TABLE.split())}
SIDES = [1, 100, 240, 333, 512, 600, 768, 1000, 1080, 1366, 1920, 3000, 4032]


def row(w, h, base, ratio):
    scaled = {k: [x / 512 * base / ratio for x in v] for k, v in RATIOS.items()}
    key = min(scaled, key=lambda k: abs(float(k) - h / w))
    th, tw = (int(x / 16) * 16 for x in scaled[key])
    rh, rw = (th, int(w * th / h)) if th / h > tw / w else (int(h * tw / w), tw)
    return (w, h, base, ratio, list(RATIOS).index(key), tw, th, rw, rh, int(round((rw - tw) / 2.0)), int(round((rh - th) / 2.0)))


out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data_buckets.txt")
with open(out, "w") as f:
    f.write("# made by data_buckets.py\n")
    for base, ratio in [(512, 1), (1024, 1.25), (1000, 1.5)]:
        for w in SIDES:
            for h in SIDES:
                f.write(" ".join(map(str, row(w, h, base, ratio))) + "\n")
