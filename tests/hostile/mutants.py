"""Files that were whole once: headers made by chance, and what chance then does to them, byte by byte or by their parts."""

import json
import random
import re
from collections.abc import Callable

from hostile.making import file
from hostile.strict import BITS

NAMES = ("a", "b.weight", "ä", "", "layer.0.weight", "😀", 'q"\\', "a\n", "shape", "dtype", "x" * 40)
NUMBERS = ("-1", "-0", "0", "00", "1", "01", "1.0", "1e0", "1E1", "7", "255", "281474976710655", "281474976710656",
           "18446744073709551615", "18446744073709551616", "9" * 40, "NaN", "Infinity", "true", "null", '"1"', "[]")  # fmt: skip
WORDS = ("{}", "[]", "null", "true", "0", '""', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0061"', '"\\x"', '"\x01"', "'a'", ",",
         ":", "}", "{", "]", "[", '"', "//", "\ufeff", "\n", "\t", "\v", " ", "\0", "\xa0")  # fmt: skip
FIELDS = ('"dtype"', '"shape"', '"data_offsets"', '"__metadata__"')


def a_file(chance: random.Random) -> tuple[bytes, list[str]]:
    """Return a file, and the names of the mutations that it went through."""
    header, data = a_header(chance)
    names = chance.choices(list(MUTATIONS), k=chance.choice((0, 1, 1, 1, 2, 3)))
    for name in names:
        header = MUTATIONS[name](header, chance) or b"{"
    content = file(header, data)
    if chance.random() < 0.15:
        names.append("length")
        content = _other_length(content, chance)
    if chance.random() < 0.15:
        names.append("end")
        content = chance.choice((content + b"\0", content[:-1], content[: chance.randrange(len(content) + 1)]))
    return content, names or ["none"]


def a_header(chance: random.Random) -> tuple[bytes, int]:
    """Return a whole header and how many bytes of data it describes."""
    members: dict[str, object] = {}
    place = 0
    for name in chance.sample(NAMES, chance.randrange(5)):
        dtype, shape = chance.choice(list(BITS)), [chance.randrange(4) for _ in range(chance.randrange(4))]
        volume = 1
        for length in shape:
            volume *= length
        if BITS[dtype] * volume % 8:
            dtype = "U8"
        nbytes = BITS[dtype] * volume // 8
        members[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + nbytes]}
        place += nbytes
    if chance.random() < 0.4:
        members["__metadata__"] = {
            name: chance.choice(("pt", "{}", "\x1b[31m", "😀")) for name in NAMES[: chance.randrange(4)]
        }
    items = list(members.items())
    chance.shuffle(items)
    text = json.dumps(dict(items), ensure_ascii=chance.random() < 0.5, indent=chance.choice((None, None, None, 1)))
    return text.encode() + b" " * chance.choice((0, 0, 1, 7)), place


def _flip(header: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(header))
    return header[:at] + bytes([header[at] ^ (1 << chance.randrange(8))]) + header[at + 1 :]


def _byte(header: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(header))
    return header[:at] + bytes([chance.randrange(256)]) + header[at + chance.randrange(2) :]


def _cut(header: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(header))
    return header[:at] + header[at + chance.randrange(1, 9) :]


def _repeat(header: bytes, chance: random.Random) -> bytes:
    at, length = chance.randrange(len(header)), chance.randrange(1, 60)
    return header[: at + length] + header[at:]


def _splice(header: bytes, chance: random.Random) -> bytes:
    other, _ = a_header(chance)
    return header[: chance.randrange(len(header))] + other[chance.randrange(len(other)) :]


def _word(header: bytes, chance: random.Random) -> bytes:
    at = chance.choice([0, len(header), *(match.start() for match in re.finditer(rb"[\[\]{},:\"]", header))])
    return header[:at] + chance.choice(WORDS).encode("utf-8", "surrogatepass") + header[at:]


def _replace(
    pattern: bytes, replacements: Callable[[bytes], tuple[str, ...]]
) -> Callable[[bytes, random.Random], bytes]:
    """Return a mutation that puts something else in the place of one match."""

    def mutate(header: bytes, chance: random.Random) -> bytes:
        matches = list(re.finditer(pattern, header))
        if not matches:
            return header
        match = chance.choice(matches)
        return header[: match.start()] + chance.choice(replacements(match[0])).encode() + header[match.end() :]

    return mutate


def _near(number: bytes) -> tuple[str, ...]:
    return (str(int(number) + 1), str(max(0, int(number) - 1)), str(2 * int(number)), number.decode() + ".0")


def _spelled(text: bytes) -> tuple[str, ...]:
    plain = text.decode("utf-8", "replace")
    return (
        "".join(f"\\u{ord(c):04x}" for c in plain) if plain.isascii() else plain,
        plain.upper(),
        plain + "a",
        plain[:-1],
    )


def _member_twice(header: bytes, chance: random.Random) -> bytes:
    """Repeat a member of an object: the same key stands twice."""
    matches = list(re.finditer(rb'"[a-z_.0-9]*"\s*:\s*("[^"]*"|\[[^\]]*\]|\{[^{}]*\})', header))
    if not matches:
        return header
    match = chance.choice(matches)
    return header[: match.end()] + b"," + match[0] + header[match.end() :]


def _swapped(header: bytes, chance: random.Random) -> bytes:
    """Let two lists change places: shapes, or where tensors lie."""
    lists = list(re.finditer(rb"\[[^\[\]]*\]", header))
    if len(lists) < 2:
        return header
    one, other = sorted(chance.sample(lists, 2), key=lambda match: match.start())
    return header[: one.start()] + other[0] + header[one.end() : other.start()] + one[0] + header[other.end() :]


def _other_length(content: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    others = (
        length - 1,
        length + 1,
        0,
        1,
        2,
        2**63,
        2**64 - 1,
        16 * 2**20,
        16 * 2**20 + 1,
        length ^ (1 << chance.randrange(64)),
    )
    return max(0, chance.choice(others)).to_bytes(8, "little") + content[8:]


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit": _flip,
    "byte": _byte,
    "cut": _cut,
    "repeat": _repeat,
    "splice": _splice,
    "word": _word,
    "number": _replace(rb"(?<=[\[ ,])\d+(?=[\],])", lambda number: NUMBERS),
    "near number": _replace(rb"(?<=[\[ ,])\d+(?=[\],])", _near),
    "dtype": _replace(rb'"[A-Z]+\d+[A-Z0-9_]*"', lambda dtype: (*(f'"{name}"' for name in BITS), '"F31"', "7", '"f32"')),
    "field": _replace(rb'"(?:dtype|shape|data_offsets|__metadata__)"', lambda name: (*FIELDS, '"dtypes"', '"\\u0064type"')),
    "spelling": _replace(rb'(?<=")[^"\\{}\[\],:]+(?=")', _spelled),
    "space": _replace(rb"[,:{}\[\]]", lambda mark: (f"{mark.decode()} ", f"\n{mark.decode()}", f"\t{mark.decode()}\r", "\v")),
    "comma": _replace(rb",", lambda comma: ("", ",,", ", ,", ":")),
    "twice": _member_twice,
    "swapped": _swapped,
    "padding": lambda header, chance: header + chance.choice((b" ", b"\n", b"\0", b"\t", b"{}", b"}", b" " * 99)),
}  # fmt: skip
