#!/usr/bin/env python3
"""Makes examples/{pictures,concept,clocks} from the Noto Color Emoji font; run once, by hand.

    tests/examples_extract.py [FONT [EXAMPLES_DIR]]

A picture is the font's own PNG bitmap (CBDT table), byte for byte; its caption is an article, the Unicode name in
lower case, and a category.  Needs fontTools.  The committed files come from fonts-noto-color-emoji 2.042-0+deb12u1.
"""
import json
import os
import re
import shutil
import sys
import unicodedata

from fontTools.ttLib import TTFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"

# What the base model learns.  Nothing here shows a cat or a clock: those are the concepts.
PICTURES = {
    "smiley": "😀😁😂😃😄😅😆😇😉😊😋😌😍😎😏😐😑😒😓😔😕😖😗😘😙😚😛😜😝😞😟😠😡😢😣😤😥😦😧😨😩😪😫😬😭😮😯😰😱😲😳😴"
              "😵😶😷🙁🙂🙃🙄🤐🤑🤒🤓🤔🤕🤗🤠🤢🤣🤤🤧🤨🤩🤪🤫🤭🥰🥳🥴🥵🥶🥺🧐🥱🥲",
    "animal face": "🐭🐮🐯🐰🐲🐴🐵🐶🐷🐸🐹🐺🐻🐼🦁🦄🦊🐨🦝",
    "animal": "🐀🐂🐄🐅🐆🐇🐊🐍🐎🐏🐐🐑🐒🐕🐖🐗🐘🐢🐿🦇🦌🦍🦎🦏🦔🦓🦒🦘🦙🦛🦥🦦🦨🐫🐌",
    "bird": "🐓🐔🐣🐤🐥🐦🐧🦅🦆🦉🦃🦚🦜🦢🦩",
    "sea animal": "🐋🐙🐟🐠🐡🐬🐳🦀🦈🦐🦑🦞🐚",
    "bug": "🐛🐜🐝🐞🦋🕷🦗",
    "fruit": "🍇🍈🍉🍊🍋🍌🍍🍎🍏🍐🍑🍒🍓🥝🥥🥭🫐",
    "vegetable": "🍅🍆🌶🌽🍄🥑🥒🥔🥕🥦🧄🧅🫑",
    "food": "🌭🌮🍔🍕🍖🍗🍙🍞🍟🍣🍤🥐🥚🥞🥨🥪🧀🧇",
    "dessert": "🍦🍧🍨🍩🍪🍫🍬🍭🍮🍯🍰🎂🧁🥧",
    "drink": "☕🍵🍷🍸🍹🍺🥛🥤",
    "flower": "🌷🌸🌹🌺🌻🌼",
    "plant": "🌱🌲🌳🌴🌵🌿🍀🍁🍂",
    "heart": "❤💙💚💛💜🖤🤍🤎🧡💔💕💖💘💝",
    "circle": "🔴🔵⚪⚫🟠🟡🟢🟣🟤",
    "square": "🟥🟦🟧🟨🟩🟪🟫⬛⬜",
    "diamond": "🔶🔷",
    "sky": "🌙🌍🌑🌓🌕🌗🌛🌜🌝🌞⭐🌟🪐☀",
    "weather": "☁⛅⛈🌈🌧🌨🌩🌪☃❄⚡💧🔥",
    "vehicle": "✈⛵🚀🚁🚂🚄🚌🚍🚑🚒🚓🚕🚗🚘🚙🚚🚜🚢🚤🚲🛵🛴🛸🏎🏍",
    "building": "🏠🏢🏥🏦🏫🏰⛪🗼",
    "ball": "⚽⚾🏀🏈🏐🎾🎱🥎",
    "instrument": "🎷🎸🎺🎻🥁🪕",
    "clothing": "👕👖👗👚👒👟👠👢🧢🧣🧦🧤🎩👑",
    "object": "☂🎁🎈🎃🎄🎀🏆💡💎💣💰📕📗📘📷📺🔑🔒🔔🔨🔧✂✏📌🧲🧸🪑🔮🎲🧭🗝",
}

# Never shown to the base; small enough for a LoRA to learn in minutes.
CONCEPT = {"smiley": "🐱😸😹😺😻😼😽😾😿🙀"}
CLOCKS = {"clock": "".join(chr(c) for c in range(0x1F550, 0x1F568))}

# In the folder but not in metadata.json: for held-out losses, and to see what was understood rather than remembered.
HELD_OUT = set("😄😔😮🤓🐵🐻🐎🦉🐟🍐🍓🥕🍪🌳💚🟠🚗🏠👕🔒" "😿😽" "🕒🕕🕘🕛")

CAPTION = {     # where the Unicode name would mislead
    "❤": "red heart", "⭐": "yellow star", "☀": "yellow sun with rays", "⚪": "large white circle",
    "⚫": "large black circle", "⬛": "large black square", "⬜": "large white square", "☂": "purple umbrella",
    "☕": "cup of coffee", "✂": "pair of red scissors", "⚡": "yellow lightning bolt", "☃": "snowman in the snow",
    "💔": "broken red heart", "👒": "straw hat with a ribbon", "👚": "purple blouse", "👢": "brown boot",
    "🍊": "orange tangerine", "🐷": "pink pig face", "🚗": "red car", "🚘": "red car from the front",
    "🚙": "blue car", "🚕": "yellow taxi", "🚍": "bus from the front", "🎩": "black top hat", "🏎": "red racing car",
    "🎷": "golden saxophone", "🎺": "golden trumpet", "📕": "closed red book", "📗": "closed green book",
    "📘": "closed blue book", "💡": "yellow light bulb", "🎱": "black billiard ball", "🏀": "orange basketball",
    "🏠": "house", "🔨": "hammer", "🔶": "large orange diamond", "🔷": "large blue diamond", "🏰": "castle",
    "🗼": "red tower", "🌍": "globe of the earth", "🌽": "ear of corn", "🧸": "brown teddy bear",
    "🦙": "white llama", "👠": "red high-heeled shoe", "👟": "blue running shoe", "🌭": "hot dog sausage in a bun",
    "🌑": "dark new moon", "🌓": "first quarter moon", "🌕": "yellow full moon", "🌗": "last quarter moon",
    "🍀": "green four leaf clover", "🍁": "red maple leaf", "🚲": "bicycle", "🌙": "yellow crescent moon",
    "🌶": "red hot pepper", "🎾": "tennis racquet and ball", "🐂": "brown ox", "🐢": "green turtle",
    "😢": "crying face with a tear", "🤣": "face rolling on the floor laughing", "🧐": "face with a monocle",
    "🦝": "raccoon face", "🐨": "koala face", "🐧": "penguin", "🐥": "yellow chick from the front", "⛪": "church",
    "🍖": "piece of meat on the bone", "🍗": "roast chicken leg", "🐞": "red ladybird", "🐛": "green caterpillar",
    "🦓": "zebra", "🦒": "giraffe", "⛈": "thunder cloud with rain", "💧": "blue drop of water", "🌩": "cloud with lightning",
    "🌿": "green herb", "🦗": "green cricket", "🐚": "spiral shell", "🍬": "wrapped candy",
    "😿": "crying cat face with a tear", "🙀": "weary cat face, screaming",
}
NO_ARTICLE = {"french fries", "fire", "cherries", "grapes", "pancakes", "jeans", "socks", "gloves", "blueberries", "bread",
              "sushi", "two hearts", "broccoli", "garlic"}


def caption(char, category):
    name = CAPTION.get(char) or unicodedata.name(char).lower()
    name = name.replace("clock face", "clock face showing").replace("oclock", "o'clock")
    if name not in NO_ARTICLE:
        name = ("an " if re.match("[aeio]|u(?!ni)", name) else "a ") + name
    return name if re.search(rf"\b{category}s?\b", name) else f"{name}, {category}"


def write_set(folder, table, cmap, bitmaps):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    train, held = [], []
    for category, chars in table.items():
        for char in dict.fromkeys(chars.replace("\ufe0f", "")):
            png = bitmaps[cmap[ord(char)]].imageData
            width, height = (int.from_bytes(png[i:i + 4], "big") for i in (16, 20))
            name = re.sub(r"[^a-z0-9]+", "_", unicodedata.name(char).lower()) + ".png"
            with open(os.path.join(folder, name), "wb") as f:
                f.write(png)
            (held if char in HELD_OUT else train).append({"file_path": name, "text": caption(char, category),
                                                          "type": "image", "width": width, "height": height})
    for name, rows in ("metadata.json", train), ("heldout.json", held):
        with open(os.path.join(folder, name), "w") as f:
            f.write("[\n" + ",\n".join("  " + json.dumps(r) for r in rows) + "\n]\n")
    print(f"{folder}: {len(train)} pictures, {len(held)} held out")


def main():
    font = TTFont(sys.argv[1] if len(sys.argv) > 1 else FONT)
    root = sys.argv[2] if len(sys.argv) > 2 else os.path.join(os.path.dirname(__file__), "..", "examples")
    cmap, bitmaps = font.getBestCmap(), font["CBDT"].strikeData[0]
    for name, table in ("pictures", PICTURES), ("concept", CONCEPT), ("clocks", CLOCKS):
        write_set(os.path.join(root, name), table, cmap, bitmaps)


main()
