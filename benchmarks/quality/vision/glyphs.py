"""The letters of writing systems, each drawn once, large, from the Noto fonts that Debian packages."""

import unicodedata
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..assets import deb

SIDE = 56  # pixels of a drawn letter
MARGIN = 6
SIZE = 80  # of the font, before the letter is fitted into its square
FONTS = (
    "pool/main/f/fonts-noto/fonts-noto-core_20201225-1_all.deb",
    "58f4f0bb6720f919f92096b3508e1412a0f1544424ade6c5b5bf1eb694dd64ba",
)
FOLDER = "usr/share/fonts/truetype/noto"
MISSING = "\uffff"  # no font has it: it is drawn as the sign of an unknown letter
# Script: its fonts (Noto*.ttf), the first and the last of its letters
SCRIPTS: dict[str, tuple[tuple[str, ...], int, int]] = {
    # for the base model alone
    "latin": (("Sans-Regular", "Serif-Regular", "Sans-Bold"), 0x41, 0x7A),
    "greek": (("Sans-Regular", "Serif-Regular", "Sans-Bold"), 0x391, 0x3C9),
    "cyrillic": (("Sans-Regular", "Serif-Regular", "Sans-Bold"), 0x410, 0x44F),
    "armenian": (("SansArmenian-Regular", "SerifArmenian-Regular", "SansArmenian-Bold"), 0x531, 0x586),
    "hebrew": (("SansHebrew-Regular", "SerifHebrew-Regular", "SansHebrew-Bold"), 0x5D0, 0x5EA),
    "arabic": (("SansArabic-Regular", "NaskhArabic-Regular", "SansArabic-Bold"), 0x620, 0x64A),
    "devanagari": (("SansDevanagari-Regular", "SerifDevanagari-Regular", "SansDevanagari-Bold"), 0x904, 0x939),
    "georgian": (("SansGeorgian-Regular", "SerifGeorgian-Regular", "SansGeorgian-Bold"), 0x10D0, 0x10F0),
    "ethiopic": (("SansEthiopic-Regular", "SerifEthiopic-Regular", "SansEthiopic-Bold"), 0x1200, 0x1240),
    "cherokee": (("SansCherokee-Regular", "SansCherokee-Bold"), 0x13A0, 0x13DF),
    "canadian": (("SansCanadianAboriginal-Regular", "SansCanadianAboriginal-Bold"), 0x1401, 0x1430),
    "yi": (("SansYi-Regular",), 0xA000, 0xA030),
    # for tasks
    "bengali": (("SansBengali-Regular",), 0x985, 0x9B9),
    "coptic": (("SansCoptic-Regular",), 0x2C80, 0x2CB1),
    "glagolitic": (("SansGlagolitic-Regular",), 0x2C00, 0x2C2E),
    "gothic": (("SansGothic-Regular",), 0x10330, 0x10349),
    "kannada": (("SansKannada-Regular",), 0xC85, 0xCB9),
    "khmer": (("SansKhmer-Regular",), 0x1780, 0x17A2),
    "lao": (("SansLao-Regular",), 0xE81, 0xEAE),
    "lisu": (("SansLisu-Regular",), 0xA4D0, 0xA4F7),
    "myanmar": (("SansMyanmar-Regular",), 0x1000, 0x102A),
    "nko": (("SansNKo-Regular",), 0x7CA, 0x7EA),
    "olchiki": (("SansOlChiki-Regular",), 0x1C5A, 0x1C77),
    "runic": (("SansRunic-Regular",), 0x16A0, 0x16EA),
    "tamil": (("SansTamil-Regular",), 0xB85, 0xBB9),
    "telugu": (("SansTelugu-Regular",), 0xC05, 0xC39),
    "thai": (("SansThai-Regular",), 0xE01, 0xE2E),
    "tifinagh": (("SansTifinagh-Regular",), 0x2D30, 0x2D67),
    # for tasks that are never folded
    "gujarati": (("SansGujarati-Regular",), 0xA85, 0xAB9),
    "oldturkic": (("SansOldTurkic-Regular",), 0x10C00, 0x10C48),
    "sinhala": (("SansSinhala-Regular",), 0xD85, 0xDC6),
    "taile": (("SansTaiLe-Regular",), 0x1950, 0x196D),
    # for the held tasks
    "adlam": (("SansAdlamUnjoined-Regular",), 0x1E900, 0x1E943),
    "avestan": (("SansAvestan-Regular",), 0x10B00, 0x10B35),
    "balinese": (("SansBalinese-Regular",), 0x1B05, 0x1B33),
    "brahmi": (("SansBrahmi-Regular",), 0x11005, 0x11037),
    "chakma": (("SansChakma-Regular",), 0x11103, 0x11126),
    "cham": (("SansCham-Regular",), 0xAA00, 0xAA28),
    "deseret": (("SansDeseret-Regular",), 0x10400, 0x10427),
    "lepcha": (("SansLepcha-Regular",), 0x1C00, 0x1C23),
    "limbu": (("SansLimbu-Regular",), 0x1900, 0x191E),
    "meetei": (("SansMeeteiMayek-Regular",), 0xABC0, 0xABE2),
    "osage": (("SansOsage-Regular",), 0x104B0, 0x104D3),
    "oriya": (("SansOriya-Regular",), 0xB05, 0xB39),
    "saurashtra": (("SansSaurashtra-Regular",), 0xA882, 0xA8B3),
    "shavian": (("SansShavian-Regular",), 0x10450, 0x1047F),
    "sundanese": (("SansSundanese-Regular",), 0x1B83, 0x1BA0),
    "syriac": (("SansSyriac-Regular",), 0x710, 0x72F),
    "thaana": (("SansThaana-Regular",), 0x780, 0x7A5),
    "vai": (("SansVai-Regular",), 0xA500, 0xA560),
}
PRETRAINING = tuple(SCRIPTS)[:12]


@lru_cache(maxsize=8)
def letters(script: str, font: int = 0) -> Tensor:
    """Return (n, SIDE, SIDE), 0 to 1: a script's letters in one of its fonts, in the order of their numbers."""
    fonts, first, last = SCRIPTS[script]
    folder = deb(*FONTS) / FOLDER
    pen = ImageFont.truetype(folder / f"Noto{fonts[font]}.ttf", SIZE, layout_engine=ImageFont.Layout.BASIC)
    signs = [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code)) in ("Lo", "Lu", "Ll")]
    unknown = bytes(pen.getmask(MISSING))
    drawn = [_fitted(pen, sign) for sign in signs if bytes(pen.getmask(sign)) not in (unknown, b"")]
    return torch.from_numpy(np.stack(drawn)).float() / 255


def _fitted(pen: ImageFont.FreeTypeFont, sign: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Draw a sign in the middle of a square, as large as fits."""
    wide = Image.new("L", (4 * SIZE, 4 * SIZE))
    ImageDraw.Draw(wide).text((2 * SIZE, 2 * SIZE), sign, fill=255, font=pen, anchor="mm")
    inked = wide.crop(wide.getbbox())
    scale = (SIDE - 2 * MARGIN) / max(inked.size)
    width, height = (max(1, round(scale * length)) for length in inked.size)
    square = Image.new("L", (SIDE, SIDE))
    square.paste(inked.resize((width, height), Image.Resampling.BILINEAR), ((SIDE - width) // 2, (SIDE - height) // 2))
    return np.asarray(square)


def pretraining() -> tuple[Tensor, Tensor]:
    """Return the letters of the base model's scripts, in all their fonts, and which letter each is."""
    drawn, labels, known = [], [], 0
    for script in PRETRAINING:
        fonts = [letters(script, font) for font in range(len(SCRIPTS[script][0]))]
        drawn += fonts
        labels += len(fonts) * [torch.arange(known, known + len(fonts[0]))]
        known += len(fonts[0])
    return torch.cat(drawn), torch.cat(labels)
