"""Token ids of transformers on 2,300 strings, for tests/unit/text_tokenizer.c.

    ../../venv/bin/python tok_make.py FOLDER       # transformers 5; FOLDER: with clip/, t5/ and qwen2/

writes tok_strings.txt (one string per line; \\\\, \\n, \\r, \\t and \\xNN for any other byte that cannot be seen) and
tok_NAME.ids: line i + 1 holds the ids of string i, cut to LIMIT, each as three digits of base 64 (0-9 A-Z a-z - _), or
two for the small vocabularies.  It prints what the test has of letters, numbers and lower case.

tok_small_clip/ and tok_small_t5/ were trained by dt on the first TRAIN strings: `build/unit/text_tokenizer train`
writes them (another version of libsentencepiece gives another spiece.model, and then this script has to run again).

With transformers 4 the script writes nothing and lists the strings on which its slow tokenizers differ instead.
"""
import os
import random
import sys
import unicodedata

import tokenizers
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
TRAIN = 807         # captions and sentences, as much as there is; tests/unit/text_tokenizer.c has the same number
LIMIT = {"clip": 77, "t5": 64, "qwen2": 64, "small_clip": 40, "small_t5": 40}
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"

SENTENCES = """
A red fox jumps over the lazy dog.|It's a dog's life, isn't it? They'll say we've won; I'd say I'm done.|IT'S THEY'RE WE'VE I'M
Der schnelle braune Fuchs springt über den faulen Hund. Straße, Größe, Öl.|L'été dernier, à la plage : « où es-tu ? » – ça va.
El niño comió piñas en España; ¿qué tal? ¡Olé!|O avião não está no céu, são três horas da manhã.|Perché così è più bello.
Zażółć gęślą jaźń.|Příliš žluťoučký kůň úpěl ďábelské ódy.|Árvíztűrő tükörfúrógép.|Pijamalı hasta yağız şoföre çabucak güvendi.
İSTANBUL ve ılık IŞIK|Þórður fór í sund.|Høns på øen.|Țara și oraș.|Ngày mai trời sẽ mưa ở Việt Nam.|Kæmi ný öxi hér.
Съешь же ещё этих мягких французских булок, да выпей чаю.|Їжак їсть ґудзик.|Ђорђе и Љиљана|Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
ΟΔΥΣΣΕΥΣ ΣΑΣ|Կապույտ երկինք|ქართული ენა|ᲥᲐᲠᲗᲣᲚᲘ|עברית היא שפה יפה: שָׁלוֹם|اللغة العربية جميلة، مَرْحَبًا|فارسی می\u200cخوانم|اردو زبان
हिन्दी में लिखना आसान है।|क्षत्रिय कि की कु|বাংলা ভাষা|தமிழ் மொழி|తెలుగు భాష|ಕನ್ನಡ|മലയാളം|සිංහල|ภาษาไทยง่ายนิดเดียว|ພາສາລາວ|ភាសាខ្មែរ|မြန်မာဘာသာ
བོད་སྐད་|አማርኛ ቋንቋ|ᏣᎳᎩ ꭰꭱ|ᓀᐦᐃᔭᐍᐏᐣ|Монгол ᠮᠣᠩᠭᠣᠯ|中文字符测试,没有空格。|繁體中文與標點「引號」|日本語のテキスト、ひらがなとカタカナ。|ﾊﾝｶｸ ｶﾅ|한국어 문장입니다.|각각
𠀀𠀁 𪜶 𫝀|Ａｂｃ１２３！？|①②③ ⑳ Ⅳ ½ ¾ ⅞ ² ₃|ﬁne ﬂow ﬀ ﬆ|㎏ ㏒ ㍿ ﷺ|™ ® © ℃ Ω Å K|e=mc² ∑∫√∞ ≠ ≤ → ⇒|x₁ + x₂|€5,000.00 £3 ¥100 ₹50 ₿
10% of 3.14159 is 0.314159; 1,000,000 / 7 = 142857.142857|2024-02-29T12:34:56Z|+1 (555) 010-9999|v1.2.3-rc4|0xDEADBEEF 1e-10 007
https://example.org/a/b?c=d&e=%20#f|user.name+tag@example.org|C:\\Program Files\\x|~/.config/*.{c,h}|a_b_c __init__ --flag -x|#hashtag @you
"quoted" 'single' `code` “curly” ‘quotes’ «guillemets» „low“|(a [b {c} d] e) <f>|…!!! ??? ?! ... .. ;;; ::|!!!!!!! !!!!!!!!!!!!!!|________ -------
dog’s it’s ‘s 's 'S 'll 'LL 'd 'm 're 've 't s' '' ' "|rock 'n' roll|'tis|o'clock O'CLOCK|y'all'd've|''s '''ll|a'sb a'rec|'ſ 'K
<|startoftext|>|<|endoftext|>|<|STARTOFTEXT|> <|EndOfText|>|a<|endoftext|>b|<|endoftext|><|endoftext|>|<|endoftext|>!|<|endoftext|
</s>|<pad>|<unk>|<s>|a</s>b|a </s> b|</s></s>|<extra_id_0>|x <extra_id_99> y<extra_id_1>z|<extra_id_100> <extra_id_>|＜/s＞ ＜pad＞|</w> a</w>
<|im_start|>user\\nhi<|im_end|>|<|image_pad|><|vision_start|>|<|IM_START|>|▁|▁▁|▁a ▁ b▁|a▁b|_▁_|[PAD] [UNK] [CLS] [MASK]|<mask> <bos>|�|a�b
👍|👍🏽|👨\u200d👩\u200d👧\u200d👦|🏳️\u200d🌈 🏴\u200d☠️|🇩🇪🇫🇷🇯🇵|❤️ ❤ ♥|☺️☹|😀😃😄😁😆|1️⃣ #️⃣|👩🏿\u200d🚀 in space|🧑\u200d💻🤝🧑🏻|🫠🪿🫨|a😀b|cat😺face|🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f|⚡️ fast ⌛
e\u0301|\u00e9|n\u0303 \u00f1|A\u030a|o\u0323\u0302 o\u0302\u0323|u\u0308\u0304
é|é|ñ ñ|Å Å|ộ ộ|ǖ ǖ|Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!|ḍ̇ ḍ̇|한 한|か゛が が|क़ क़|⃝a⃝|i̇ İ ı|ǅ ǈ ǋ ǆ|ẞ ß
a|A|1|!|'|ab|a b|I|é|中|🙂|the|The|THE|tHe|.|,|-|_|~|\\\\|/|a\\\\b
""".replace("\\n", "\n")

NOUNS = ("cat dog fox owl horse castle robot astronaut lighthouse mountain river teapot bicycle violin dragon garden "
         "library train spaceship waterfall portrait sunflower clock bridge market city forest desert harbour").split()
ADJECTIVES = ("red blue tiny enormous ancient futuristic fluffy wooden golden broken happy sleepy mysterious transparent "
              "hand-drawn neon rusty misty photorealistic 8k low-poly half-finished").split()
STYLES = ("oil painting", "digital art", "black-and-white photo", "watercolour", "35mm film, f/1.8", "pixel art",
          "trending on artstation", "studio lighting", "by candle light", "in the style of ukiyo-e", "HDR, 4K, HQ")
PLACES = ("on the beach", "in a dark forest", "under water", "at sunset", "in the 1920s", "during a thunderstorm",
          "on Mars", "in front of a white background", "near Köln", "beside the Seine")
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n", "\x0b", "\x0c", "\x1c", "\x1f", "\x85", "\xa0", "\u1680",
          "\u180e", "\u2003", "\u200a", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff"]
MARKS = "\u0300\u0301\u0307\u0308\u0323\u0327\u0345\u200d\ufe0f\u20dd\u3099\u093c\u094d\u064b\u0651\u05bc\u1161\u11a8\u0f39\u0e33"
BASES = "aeiousAEIOUScnDkΑαιЖжかハकयᄀ가الאกສ1!-" + "👩🏽🇩"
BLOCKS = [(0x20, 0x7f), (0xa0, 0x180), (0x180, 0x250), (0x250, 0x370), (0x370, 0x400), (0x400, 0x530), (0x530, 0x600),
          (0x600, 0x700), (0x900, 0x980), (0x980, 0xe00), (0xe00, 0x1000), (0x1000, 0x1200), (0x1200, 0x1400),
          (0x13a0, 0x1400), (0x1780, 0x18b0), (0x1c80, 0x1d00), (0x1e00, 0x2000), (0x2010, 0x2070), (0x2070, 0x2200),
          (0x2200, 0x2400), (0x2460, 0x2600), (0x2600, 0x27c0), (0x2c00, 0x2e00), (0x3000, 0x3100), (0x3100, 0x3400),
          (0x3400, 0x4dc0), (0x4e00, 0x9fff), (0xa000, 0xab00), (0xac00, 0xd7a4), (0xf900, 0xfb50), (0xfb50, 0xfe00),
          (0xfe30, 0xfff0), (0x10000, 0x10800), (0x1d100, 0x1d800), (0x1f000, 0x1f700), (0x1f900, 0x1fb00),
          (0x20000, 0x32000), (0xe0020, 0xe0080)]


def assigned(rng, lo, hi):
    while True:
        c = chr(rng.randrange(lo, hi))
        if unicodedata.category(c) not in ("Cn", "Cs"):
            return c


def captions(rng):
    """Plain English, as image captions are; the small vocabularies are trained on these and on SENTENCES."""
    out = []
    for _ in range(600):
        s = f"a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        if rng.random() < 0.5:
            s += f" and a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
        if rng.random() < 0.6:
            s += " " + rng.choice(PLACES)
        for _ in range(rng.choice((0, 0, 1, 2))):
            s += ", " + rng.choice(STYLES)
        out.append(s if rng.random() < 0.6 else s[0].upper() + s[1:] + ".")
    return out


def piece(rng, words):
    r = rng.random()
    if r < 0.45:
        return rng.choice(words)
    if r < 0.6:
        return "".join(rng.choice(BASES) + "".join(rng.choices(MARKS, k=rng.randrange(4))) for _ in range(rng.randrange(1, 4)))
    if r < 0.8:
        lo, hi = rng.choice(BLOCKS)
        return "".join(assigned(rng, lo, hi) for _ in range(rng.randrange(1, 6)))
    if r < 0.87:
        return str(rng.randrange(10 ** rng.randrange(1, 13)))
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ-_',.", k=rng.randrange(1, 16)))


def damaged(rng, s):
    """Some bytes that are no UTF-8 any more."""
    b = bytearray(s.encode())
    for _ in range(rng.randrange(1, 4)):
        b[rng.randrange(len(b))] = rng.choice((0x80, 0xbf, 0xc0, 0xc2, 0xe0, 0xe2, 0xed, 0xf0, 0xf4, 0xf5, 0xff))
    return bytes(b[:rng.randrange(1, len(b) + 1)])


def strings():
    rng = random.Random(2)
    sentences = [s for line in SENTENCES.strip().split("\n") for s in line.split("|")]
    plain = captions(rng)
    out = [""] + sentences + plain
    out += [a + w + b for w in SPACES for a, b in (("", ""), ("a", "b"), (" a", ""), ("", "B c"))]
    out += [w * n for w in ("word ", "a", "!", "中", "😀", "ab1'", "Supercalifragilistic", "e\u0301 ") for n in (40, 77, 120)]
    out += [" ".join(rng.sample(plain, 8)) for _ in range(12)]
    for lo, hi in BLOCKS:
        for n in (1, 1, 2, 3, 5, 9, 16):
            out.append("".join(assigned(rng, lo, hi) for _ in range(n)))
    words = [w for s in sentences for w in s.split(" ")]
    glue = [" "] * 30 + [""] * 14 + SPACES
    while len(out) < 2150:
        out.append("".join(piece(rng, words) + rng.choice(glue) for _ in range(rng.choice((1, 1, 2, 3, 4, 6, 9)))))
    out = [s.replace("\0", "").encode() for s in out]
    out += [damaged(rng, rng.choice(words) + " " + rng.choice(sentences)[:40]) for _ in range(150)]
    assert len(plain) + len(sentences) + 1 == TRAIN, len(plain) + len(sentences) + 1
    return out


def escape(b):
    s = ""
    for c in b.decode("utf-8", "surrogateescape"):
        if c in "\\\n\r\t":
            s += {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}[c]
        elif c != " " and unicodedata.category(c)[0] in "CZ":
            s += "".join(f"\\x{x:02x}" for x in c.encode("utf-8", "surrogateescape"))
        else:
            s += c
    return s


def write(name, lines):
    with open(os.path.join(HERE, name), "w", encoding="utf-8", newline="\n") as f:
        f.writelines(line + "\n" for line in lines)


def ids_of(name, folder, texts):
    cls = {"clip": "CLIPTokenizer", "t5": "T5Tokenizer", "qwen2": "Qwen2Tokenizer"}[name.split("_")[-1]]
    tok = getattr(transformers, cls).from_pretrained(folder)
    return [tok(t, truncation=True, max_length=LIMIT[name])["input_ids"] for t in texts]


def packed(name, ids):
    shifts = (6, 0) if name.startswith("small") else (12, 6, 0)
    return "".join(DIGITS[i >> s & 63] for i in ids for s in shifts)


def read_ids(name):
    with open(os.path.join(HERE, f"tok_{name}.ids"), encoding="utf-8") as f:
        return f.read().split("\n")[1:-1]


def fnv1a(h, data):
    for c in data:
        h = (h ^ c) * 0x100000001b3 & 0xffffffffffffffff
    return h


def classes():
    """Numbers and sums of letters, of numbers and of what has a lower case, for tests/unit/text_tokenizer.c."""
    parts = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(r), "removed") for r in (r"\p{L}", r"\p{N}")]
    lower = tokenizers.normalizers.Lowercase()
    n, sums = [0] * 3, [0xcbf29ce484222325] * 3
    for c in (chr(i) for i in range(1, 0x110000) if not 0xd800 <= i < 0xe000):
        small = lower.normalize_str(c)
        texts = [c * (not p.pre_tokenize_str(c)) for p in parts] + [(c + small) * (small != c)]
        for k, text in enumerate(texts):
            n[k] += text != ""
            sums[k] = fnv1a(sums[k], text.encode())
    return [f"{k} {s:#018x}" for k, s in zip(n, sums)]


def main():
    data = strings()
    texts = [b.decode("utf-8", "replace") for b in data]
    folders = {"small_clip": os.path.join(HERE, "tok_small_clip"), "small_t5": os.path.join(HERE, "tok_small_t5")}
    folders.update({n: os.path.join(sys.argv[1], n) for n in ("clip", "t5", "qwen2")})
    if int(transformers.__version__.split(".")[0]) < 5:
        for name, folder in folders.items():
            rows = [packed(name, r) for r in ids_of(name, folder, texts)]
            differ = [t for t, r, want in zip(texts, rows, read_ids(name)) if r != want]
            print(f"{name}: {len(differ)} of {len(texts)} differ")
            for t in differ:
                print("   ", ascii(t)[:100])
        return
    print("letters, numbers, lower case:", *classes())
    write("tok_strings.txt", map(escape, data))
    for name, folder in folders.items():
        if os.path.isdir(folder):
            head = f"# transformers {transformers.__version__} tokenizers {tokenizers.__version__}"
            write(f"tok_{name}.ids", [head] + [packed(name, r) for r in ids_of(name, folder, texts)])
        else:
            print(f"{folder}: not there, tok_{name}.ids is left as it is", file=sys.stderr)


if __name__ == "__main__":
    main()
