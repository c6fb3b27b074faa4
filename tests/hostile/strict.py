"""An independent reader of the safetensors format, by its README's rules and mergd's bounds, to hold mergd's own against.

It imports nothing of mergd and no JSON module: character by character, so that a quirk of one cannot hide in the other.

The README's rules: a header begins with a brace and may be padded with spaces; its object maps names to dtype, shape and
data_offsets; `__metadata__` maps strings to strings; no key stands twice; the data is indexed entirely, without holes.
"Anything obscure" in JSON is left to the library there; here it is refused: other fields, other numbers than 0 and those
that begin with 1 to 9, strings that no UTF-8 can write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
        "C64": 64, "F64": 64, "I64": 64, "U64": 64}  # fmt: skip
LONGEST_HEADER = 16 * 1024 * 1024  # bytes; mergd's bounds, from here on
LONGEST_NAME = 512  # bytes
LONGEST_ENTRY = 4096  # characters, from its brace to the closing one
LARGEST = 2**48  # of lengths and offsets; what they stay below
VOLUME = 2**62  # the product of the lengths that are not 0 stays below it
MOST_METADATA = 10_000

Found = list[tuple[str, str, tuple[int, ...], int, int]]  # name, dtype, shape, first byte in the file, bytes


class Wrong(Exception):
    """The file breaks a rule, and no further byte could mend it."""


@dataclass(frozen=True)
class Judgement:
    """What the strict reader says of a file."""

    decision: Literal["whole", "refused", "incomplete"]
    tensors: Found


def judge(content: bytes) -> Judgement:
    """Return what is to be said of a file with this content."""
    if content[:8] == b"version " or len(content) < 8:
        return Judgement("incomplete", [])
    length = sum(byte << (8 * k) for k, byte in enumerate(content[:8]))
    if length < 2 or length > LONGEST_HEADER:
        return Judgement("refused", [])
    if len(content) - 8 < length:
        return Judgement("incomplete", [])
    try:
        found = _tensors(content[8 : 8 + length])
    except Wrong:
        return Judgement("refused", [])
    last = max((start + nbytes for *_, start, nbytes in found), default=8 + length)
    if last == len(content):
        return Judgement("whole", found)
    return Judgement("incomplete" if last > len(content) else "refused", [])


def _tensors(header: bytes) -> Found:
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        raise Wrong from None
    found = [
        (name, dtype, shape, 8 + len(header) + begin, last - begin)
        for name, dtype, shape, begin, last in _Reader(text).header()
    ]
    place = 8 + len(header)
    for *_, start, nbytes in sorted(found, key=lambda tensor: tensor[3:]):
        if start != place:
            raise Wrong
        place += nbytes
    return found


class _Reader:
    """Goes through the characters of a header, once."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def header(self) -> list[tuple[str, str, tuple[int, ...], int, int]]:
        if self.peek() != "{":
            raise Wrong
        found = []
        for name in self.keys():
            if name == "__metadata__":
                self.metadata()
            else:
                found.append((name, *self.entry(name)))
        if any(character != " " for character in self.text[self.at :]):
            raise Wrong
        return found

    def keys(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; the caller reads the values in between."""
        self.spaces()
        self.expect("{")
        seen: set[str] = set()
        while True:
            self.spaces()
            if self.peek() == "}":
                self.at += 1
                return
            if seen:
                self.expect(",")
                self.spaces()
            key = self.string()
            if key in seen:
                raise Wrong
            seen.add(key)
            self.spaces()
            self.expect(":")
            self.spaces()
            yield key

    def metadata(self) -> None:
        for count, _ in enumerate(self.keys(), start=1):
            self.string()
            if count > MOST_METADATA:
                raise Wrong

    def entry(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        began = self.at
        dtype, shape, place = "", None, None
        for field in self.keys():
            if field == "dtype":
                dtype = self.string()
            elif field == "shape":
                shape = self.numbers()
            elif field == "data_offsets":
                place = self.numbers()
            else:
                raise Wrong
        if dtype not in BITS or shape is None or place is None or len(place) != 2:
            raise Wrong
        if len(name.encode("utf-8")) > LONGEST_NAME or self.at - began > LONGEST_ENTRY:
            raise Wrong
        return dtype, shape, *_checked(dtype, shape, place)

    def numbers(self) -> tuple[int, ...]:
        self.expect("[")
        found: list[int] = []
        self.spaces()
        while self.peek() != "]":
            if found:
                self.expect(",")
                self.spaces()
            found.append(self.number())
            self.spaces()
        self.expect("]")
        return tuple(found)

    def number(self) -> int:
        digits = ""
        while self.peek() and self.peek() in "0123456789":
            digits += self.take()
        if not digits or (digits[0] == "0" and len(digits) > 1):
            raise Wrong
        if len(digits) > 15 or int(digits) >= LARGEST:  # 2^48 has 15 digits
            raise Wrong
        return int(digits)

    def string(self) -> str:
        self.expect('"')
        units: list[str] = []
        while (character := self.take()) != '"':
            if ord(character) < 0x20:
                raise Wrong
            units.append(self.escape() if character == "\\" else character)
        return _joined(units)

    def escape(self) -> str:
        character = self.take()
        if character == "u":
            digits = [self.take() for _ in range(4)]
            if any(digit not in "0123456789abcdefABCDEF" for digit in digits):
                raise Wrong
            return chr(int("".join(digits), 16))
        plain = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
        if character not in plain:
            raise Wrong
        return plain[character]

    def spaces(self) -> None:
        while self.peek() and self.peek() in " \t\n\r":
            self.at += 1

    def expect(self, character: str) -> None:
        if self.take() != character:
            raise Wrong

    def take(self) -> str:
        if self.at >= len(self.text):
            raise Wrong
        self.at += 1
        return self.text[self.at - 1]

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]


def _joined(units: list[str]) -> str:
    """Return a string of its characters, in which two escapes may be one character beyond 16 bits."""
    found = ""
    k = 0
    while k < len(units):
        code = ord(units[k])
        if 0xD800 <= code < 0xDC00 and k + 1 < len(units) and 0xDC00 <= ord(units[k + 1]) < 0xE000:
            code = 0x10000 + ((code - 0xD800) << 10) + (ord(units[k + 1]) - 0xDC00)
            k += 1
        if 0xD800 <= code < 0xE000:
            raise Wrong
        found += chr(code)
        k += 1
    return found


def _checked(dtype: str, shape: tuple[int, ...], place: tuple[int, ...]) -> tuple[int, int]:
    """Return where a tensor begins and ends, if that fits its dtype and shape."""
    volume, filled = 1, 1
    for length in shape:
        volume *= length
        filled *= length or 1
    begin, last = place
    if filled >= VOLUME or BITS[dtype] * volume != 8 * (last - begin):
        raise Wrong
    return begin, last
