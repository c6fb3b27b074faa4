"""The JSON of a header or an index, read member by member, so that a hostile text costs no more than its bounds.

The json module alone would build all of it before anything could be counted, and would take for good what other readers
do not, or understand otherwise: a key that stands twice, NaN, -0, true for 1, half a surrogate pair.
"""

import re
from collections.abc import Iterator
from itertools import islice, pairwise
from json import JSONDecoder
from typing import Any

from .wording import shown

MAX_ENTRY = 4096  # characters that describe one tensor
MAX_SKIPPED = 100_000  # brackets, strings and numbers of a value that nobody reads

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]|[^\s"\[\]{},:]++', re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*+")


class JsonText:
    """A JSON object and a place in it. Each method raises ValueError where the text is not what it should be."""

    def __init__(self, raw: bytes) -> None:
        self._text, self._at = raw.decode(), 0

    def members(self) -> Iterator[str]:
        """Yield the keys of the object that begins here; whoever asks for the next one has taken the value."""
        seen: set[str] = set()
        self._take("{")
        while not self._ends(seen):
            key = self.string()
            if key in seen:
                raise ValueError(f"'{shown(key)}' stands twice")
            seen.add(key)
            self._take(":")
            yield key

    def _ends(self, seen: set[str]) -> bool:
        """Whether the object ends here; if not, the next key may be read."""
        if self._next() == "}":
            self._at += 1
            return True
        if seen:
            self._take(",")
        return False

    def string(self) -> str:
        """Return the string that begins here."""
        if self._next() != '"':
            raise ValueError(f"no string at character {self._at}")
        text: str
        text, self._at = _DECODER.raw_decode(self._text, self._at)
        text.encode()  # not possible for half a surrogate pair
        return text

    def strings(self, most: int) -> dict[str, str]:
        """Return the object of at most so many strings that begins here."""
        found: dict[str, str] = {}
        for key in self.members():
            if len(found) == most:
                raise ValueError(f"more than {most:,} members")
            found[key] = self.string()
        return found

    def entry(self) -> dict[str, Any]:
        """Return the small object without objects in it that begins here."""
        end = self._text.find("}", self._at, self._at + MAX_ENTRY) + 1
        if not end:
            raise ValueError(f"an entry that does not end within {MAX_ENTRY} characters")
        text, self._at = self._text[self._at : end], end
        found = _DECODER.decode(text)
        assert isinstance(found, dict), "what ends with a brace and is JSON is an object"
        return found

    def skip(self) -> None:
        """Pass over a value that nobody reads, without keeping it: only its brackets and strings are looked at."""
        depth = 0
        for token in islice(_TOKEN.finditer(self._text, self._at), MAX_SKIPPED):
            depth += (token[0] in "[{") - (token[0] in "]}")
            if depth <= 0:
                self._at = token.end()
                return
        raise ValueError("a value that does not end, or is too long")

    def end(self, padding: str = " \t\n\r") -> None:
        """Check that nothing but padding follows."""
        if self._text[self._at :].strip(padding):
            raise ValueError(f"more after the object, at character {self._at}")

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise ValueError(f"no {character!r} at character {self._at}")
        self._at += 1

    def _next(self) -> str:
        """Return the next character that is no space, and go there; nothing at the end."""
        space = _SPACE.match(self._text, self._at)
        assert space is not None
        self._at = space.end()
        return self._text[self._at : self._at + 1]


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for one, other in pairwise(sorted(name for name, _ in pairs)):
        if one == other:
            raise ValueError(f"'{shown(one)}' stands twice")
    return dict(pairs)


def _natural(text: str) -> int:
    if text.startswith("-"):
        raise ValueError(f"the negative number {shown(text)}")
    return int(text)


def _no_number(text: str) -> Any:
    raise ValueError(f"{shown(text)}, which is no whole number")


_DECODER = JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_int=_natural, parse_float=_no_number, parse_constant=_no_number
)
