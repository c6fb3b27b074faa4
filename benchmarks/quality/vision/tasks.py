"""The sets of tasks: those that were looked at while rules were chosen, and those of which no merged model was."""

EIGHT = (
    "bengali-negative", "glagolitic-mirrored", "khmer-striped", "mnist", "runic-noisy", "shapes", "textures",
    "thai-outline",
)  # fmt: skip
TWENTY = (
    *EIGHT, "coptic-plain", "digits", "gothic-thick", "kannada-blurred", "lao-turned", "lisu-negative", "myanmar-outline",
    "nko-mirrored", "olchiki-noisy", "tamil-tiny", "telugu-plain", "tifinagh-dotted",
)  # fmt: skip
FIFTY = (
    *TWENTY, "bengali-blurred", "bengali-tiny", "coptic-negative", "coptic-turned", "glagolitic-striped",
    "glagolitic-thick", "gothic-dotted", "gothic-outline", "kannada-mirrored", "kannada-noisy", "khmer-plain",
    "khmer-turned", "lao-noisy", "lao-outline", "lisu-dotted", "lisu-tiny", "myanmar-blurred", "myanmar-negative",
    "nko-plain", "nko-striped", "olchiki-mirrored", "olchiki-thick", "runic-outline", "runic-turned", "tamil-dotted",
    "tamil-negative", "telugu-mirrored", "telugu-noisy", "thai-plain", "tifinagh-blurred",
)  # fmt: skip
UNSEEN = ("gujarati-plain", "oldturkic-plain", "sinhala-thick", "taile-blurred")  # never folded
HELD = (  # other scripts, and other styles where there are
    "adlam-embossed", "avestan-wavy", "balinese-checkered", "brahmi-upended", "chakma-pixelated", "cham-faint",
    "deseret-rolled", "lepcha-squeezed", "limbu-embossed", "meetei-wavy", "oriya-checkered", "osage-upended",
    "saurashtra-pixelated", "shavian-rolled", "sundanese-squeezed", "syriac-faint", "thaana-negative", "vai-outline",
)  # fmt: skip
