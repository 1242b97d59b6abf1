#!/usr/bin/env python3
"""Writes tests/golden/data_images/: tiny pictures of every kind, and as NAME.ppm what a picture reader must
make of them (upright, RGB, transparency over white, first frame), according to Pillow.  Also resize_*.ppm.

python3 tests/golden/data_images.py      (needs pillow and numpy; made with Pillow 13.0.0)
"""
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data_images")
W, H = 20, 12


def scene(w=W, h=H, c=3):
    """Smooth, with no symmetry: any wrong rotation or channel order shows."""
    y, x = np.mgrid[0:h, 0:w].astype(float)
    a = [255 * x / (w - 1), 255 * y / (h - 1), 255 * (x + y) / (w + h - 2), 255 * (1 - x / (w - 1))]
    return np.stack(a[:c], -1).round().astype(np.uint8)


def over_white(im):
    im = im.convert("RGBA")
    white = Image.new("RGBA", im.size, (255, 255, 255, 255))
    white.alpha_composite(im)
    return white.convert("RGB")


def put(name, im, want=None, **kw):
    path = os.path.join(OUT, name)
    im.save(path, **kw)
    if want is None:
        want = over_white(ImageOps.exif_transpose(Image.open(path)))
    want.save(os.path.join(OUT, name + ".ppm"))


def png16(a):
    """PNG of 16-bit samples [h, w, c], which Pillow does not write."""
    h, w, c = a.shape

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in a)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, {3: 2, 4: 6}[c], 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tiff16(a):
    """TIFF of 16-bit RGB samples, one strip."""
    h, w, c = a.shape
    body = a.astype("<u2").tobytes()
    tags = [(256, 3, 1, w), (257, 3, 1, h), (258, 3, 3, 8 + len(body)), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8),
            (277, 3, 1, c), (278, 3, 1, h), (279, 4, 1, len(body))]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", 0)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body) + 6) + body + struct.pack("<3H", 16, 16, 16) + ifd


def ycck(a):
    """JPEG in Adobe's YCCK, which Pillow reads but does not write: one of four components, Y Cb Cr of the inks and K inverted,
    whose Adobe marker says so."""
    paper = a.astype(int)
    k = 255 - paper.max(2)
    ink = 255 - paper * 255 // (255 - k + (k == 255))[..., None]
    ycc = Image.fromarray(ink.astype(np.uint8)).convert("YCbCr")
    f = io.BytesIO()
    inverted = [Image.fromarray(255 - np.asarray(c)) for c in ycc.split()]                    # Pillow inverts all four
    Image.merge("CMYK", inverted + [Image.fromarray(k.astype(np.uint8))]).save(f, "JPEG", quality=95)
    data = bytearray(f.getvalue())
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    data[at] = 2                    # the transform: YCCK
    return bytes(data)


def put_bytes(name, data):
    path = os.path.join(OUT, name)
    with open(path, "wb") as f:
        f.write(data)
    over_white(Image.open(path)).save(path + ".ppm")


def exif(o):
    e = Image.Exif()
    e[0x0112] = o
    return e


os.makedirs(OUT, exist_ok=True)
rgb = Image.fromarray(scene())
rgba = Image.fromarray(scene(c=4))
for o in range(1, 9):
    put(f"exif{o}.jpg", rgb, quality=92, exif=exif(o))
put("gray.jpg", rgb.convert("L"), quality=92)
put("progressive.jpg", rgb, quality=92, progressive=True)
cmyk = rgb.convert("CMYK")
b = io.BytesIO()
cmyk.save(b, "JPEG", quality=95)
put("cmyk.jpg", cmyk, want=Image.open(b).convert("RGB"), quality=95)
put_bytes("ycck.jpg", ycck(scene()))

put("rgb.png", rgb)
put("rgba.png", rgba)
put("exif6.png", rgb, exif=exif(6))
put("graya.png", rgba.convert("LA"))
put("bit1.png", rgb.convert("1"))
pal = rgb.quantize(16)
put("palette.png", pal, transparency=3)
g16 = (scene()[..., 0].astype(np.uint16) * 257) ^ 0x0100
gray8 = Image.fromarray(np.repeat(((g16.astype(int) * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, -1))
put("gray16.png", Image.fromarray(g16), want=gray8)
put_bytes("rgb16.png", png16(scene().astype(np.uint16) * 257))
put_bytes("rgba16.png", png16(scene(c=4).astype(np.uint16) * 257))
put_bytes("rgb16.tiff", tiff16(scene().astype(np.uint16) * 257))
put("palettea.png", pal, transparency=bytes([255, 128, 0, 64] * 4))

put("lossy.webp", rgb, quality=95)
put("lossless.webp", rgb, lossless=True)
put("alpha.webp", rgba, lossless=True, exact=True)
put("exif8.webp", rgb, lossless=True, exif=exif(8))
other = Image.fromarray(255 - scene())
put("anim.webp", rgb, save_all=True, append_images=[other], duration=100, lossless=True)
put("palette.gif", pal)
put("transparent.gif", pal, transparency=3)
put("anim.gif", pal, save_all=True, append_images=[other.quantize(16)], duration=100)
put("rgb.tiff", rgb)
put("lzw.tiff", rgba, compression="tiff_lzw")
put("exif3.tiff", rgb, tiffinfo={274: 3})
put("exif5.tiff", rgb, compression="tiff_deflate", tiffinfo={274: 5})
put("cmyk.tiff", cmyk, want=cmyk.convert("RGB"))
put("gray16.tiff", Image.fromarray(g16), want=gray8)
put("fax.tiff", rgb.convert("1"), compression="group4")
put("rgb.bmp", rgb)
put("rgba.bmp", rgba)
put("palette.bmp", pal)
put("bit1.bmp", rgb.convert("1"))

rng = np.random.default_rng(7)
src = Image.fromarray(np.clip(scene(61, 47) * 0.6 + rng.integers(0, 100, (47, 61, 3)), 0, 255).astype(np.uint8))
src.save(os.path.join(OUT, "resize_src.ppm"))
for w, h in [(20, 15), (31, 47), (61, 20), (90, 70), (7, 64), (1, 1)]:
    src.resize((w, h), Image.BILINEAR).save(os.path.join(OUT, f"resize_{w}x{h}.ppm"))

# From a file to a bucket: decoded, resized to 85x64, cropped.
w, h = 150, 113
grain = np.random.default_rng(8).normal(0, 12, (h, w, 3))
src = Image.fromarray(np.clip(scene(w, h) * 0.8 + 25 + grain, 0, 255).astype(np.uint8))
src.paste((250, 240, 20), (40, 30, 75, 80))
for name, kw in [("fit.jpg", dict(quality=90)), ("fit.png", {}), ("fit.webp", dict(quality=85))]:
    path = os.path.join(OUT, name)
    src.save(path, **kw)
    Image.open(path).convert("RGB").resize((85, 64), Image.BILINEAR).crop((10, 0, 74, 64)).save(path + ".ppm")
