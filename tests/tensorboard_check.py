#!/usr/bin/env python3
"""Reads a folder of event files with TensorBoard's own reader, for tests/tensorboard.t, or by hand.

    tests/tensorboard_check.py LOGDIR

Prints what TensorBoard shows: of every scalar its steps and last value, of every image its size.  Exits 1 if a curve of
training is missing, a step goes back (a resumed run must replace the points that it computes again), or an image is no PNG.
"""
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = ["train/loss", "train/lr", "train/grad_norm", "performance/img_per_s", "performance/memory_MiB"]


def main():
    acc = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    acc.Reload()
    bad = 0
    tags = acc.Tags()
    for tag in tags["scalars"]:
        points = acc.Scalars(tag)
        steps = [p.step for p in points]
        if any(a >= b for a, b in zip(steps, steps[1:])):
            print(f"{tag}: steps go back: {steps}")
            bad = 1
        print(f"scalar {tag}: {len(steps)} points, steps {steps[0]}..{steps[-1]}, last {points[-1].value:.6g}")
    for tag in tags["images"]:
        for im in acc.Images(tag):
            png = im.encoded_image_string
            size = struct.unpack(">II", png[16:24])
            if png[:8] != b"\x89PNG\r\n\x1a\n" or size != (im.width, im.height):
                print(f"{tag}: step {im.step}: not a PNG of {im.width}x{im.height}")
                bad = 1
            print(f"image {tag}: step {im.step}, {im.width}x{im.height}")
    for tag in tags["tensors"]:
        print(f"text {tag}: {acc.Tensors(tag)[0].tensor_proto.string_val[0].decode()!r}")
    missing = [tag for tag in CURVES if tag not in tags["scalars"]]
    if missing:
        print(f"{sys.argv[1]}: no {', '.join(missing)}")
        bad = 1
    return bad


sys.exit(main())
