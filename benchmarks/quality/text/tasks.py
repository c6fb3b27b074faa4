"""The tasks: classes named by phrases, each with its texts; a split of them for each seed.

EIGHT is looked at while a rule is made. HELD is for judging what came of it: other classes, mostly of other texts, never
looked at with any merged model. UNSEEN is never folded: it shows what is left of the base.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quality.assets import QUALITY
from quality.text.corpora import Source, fortunes, friends, glosses, newsgroup, nouns_under, opinions, tales
from quality.text.encoder import MOST_TOKENS, Texts, tokenised

TRAIN, TEST = 1200, 160  # texts of a task, the same number of each class
MOST = 1000  # texts of a source that are considered

Classes = dict[str, Source]


def _of(reader: Callable[..., Iterable[str]], *asked: str | int) -> Source:
    return Source(reader, asked)


_nouns = partial(_of, glosses, "noun")
_under = partial(_of, nouns_under)
_group = partial(_of, newsgroup)
_said = partial(_of, fortunes)

EIGHT: dict[str, Classes] = {
    "speech": {
        "noun": _of(glosses, "noun"),
        "verb": _of(glosses, "verb"),
        "adjective": _of(glosses, "adj"),
        "adverb": _of(glosses, "adv"),
    },
    "things": {
        "act": _nouns(4),
        "artifact": _nouns(6),
        "group": _nouns(14),
        "person": _nouns(18),
        "substance": _nouns(27),
    },
    "notions": {
        "feeling": _nouns(12),
        "possession": _nouns(21),
        "quantity": _nouns(23),
        "shape": _nouns(25),
        "communication": _nouns(10),
    },
    "languages": {
        "German": _said("de"),
        "Spanish": _said("es"),
        "Polish": _said("pl"),
        "Slovenian": _of(opinions),
        "English": _said("", "cookie", "science", "work", "sports", "zippy"),
    },
    "recreation": {
        "cars": _group("rec.autos"),
        "motorcycles": _group("rec.motorcycles"),
        "baseball": _group("rec.sport.baseball"),
        "hockey": _group("rec.sport.hockey"),
    },
    "science": {
        "cryptography": _group("sci.crypt"),
        "electronics": _group("sci.electronics"),
        "medicine": _group("sci.med"),
        "space": _group("sci.space"),
    },
    "beliefs": {
        "atheism": _group("alt.atheism"),
        "christianity": _group("soc.religion.christian"),
        "guns": _group("talk.politics.guns"),
        "the middle east": _group("talk.politics.mideast"),
    },
    "genres": {
        "a line of a sitcom": _of(friends),
        "a sentence of a fairy tale": _of(tales),
        "a definition": _of(glosses, "noun"),
        "an internet posting": _group("comp.sys.ibm.pc.hardware", "comp.os.ms-windows.misc"),
        "a witty quotation": _said("", "wisdom", "people", "humorists", "platitudes"),
    },
}
HELD: dict[str, Classes] = {
    "animals": {
        "bird": _under("01503061"),
        "fish": _under("02512053"),
        "insect": _under("02159955"),
        "mammal": _under("01861778"),
        "reptile": _under("01661091"),
    },
    "artefacts": {
        "clothing": _under("03051540"),
        "vehicle": _under("04524313"),
        "building": _under("02913152"),
        "container": _under("03094503"),
        "tool": _under("04451818"),
    },
    "people": {
        "scientist": _under("10560637"),
        "writer": _under("10794014"),
        "artist": _under("09812338"),
        "deity": _under("09505418"),
        "leader": _under("09623038"),
    },
    "plants": {
        "tree": _under("13104059"),
        "shrub": _under("13112664"),
        "herb": _under("12205694"),
        "fungus": _under("12992868"),
    },
    "materials": {
        "chemical compound": _under("14818238"),
        "mineral": _under("14662574"),
        "beverage": _under("07881800"),
        "fabric": _under("03309808"),
        "disease": _under("14070360"),
    },
    "tongues": {
        "Italian": _said("it"),
        "Czech": _said("cs"),
        "Portuguese": _said("br"),
        "English": _said("", "art", "kids", "knghtbrd", "startrek", "education", "miscellaneous"),
    },
    "forums": {
        "computer graphics": _group("comp.graphics"),
        "for sale": _group("misc.forsale"),
        "Macintosh hardware": _group("comp.sys.mac.hardware"),
        "X window system": _group("comp.windows.x"),
    },
    "sayings": {
        "computers": _said("", "computers", "linux", "perl"),
        "songs and poems": _said("", "songs-poems"),
        "definitions": _said("", "definitions"),
        "politics and law": _said("", "politics", "law"),
        "men and women": _said("", "men-women", "love"),
    },
}
UNSEEN: dict[str, Classes] = {
    "verbs": {
        "caring for the body": _of(glosses, "verb", 29),
        "thinking": _of(glosses, "verb", 31),
        "speaking": _of(glosses, "verb", 32),
        "moving": _of(glosses, "verb", 38),
        "feeling": _of(glosses, "verb", 37),
    },
    "places": {
        "city": _under("08524735"),
        "body of water": _under("09225146"),
        "land": _under("09334396"),
        "building": _under("02913152"),
    },
}
TASKS = EIGHT | HELD | UNSEEN


class Split(NamedTuple):
    """The tokens of a task's texts, and of each the place of its class among the task's phrases."""

    train: Texts
    train_labels: Tensor
    test: Texts
    test_labels: Tensor


def phrases(task: str) -> list[str]:
    """Return the names of a task's classes."""
    return list(TASKS[task])


def split(task: str, seed: int) -> Split:
    """Return a task's texts, as many of each class, split at random into training and test texts."""
    pools = _pools(task)
    train, test = TRAIN // len(pools), TEST // len(pools)
    dice = np.random.default_rng(number(task, seed))
    drawn = [[pool[int(i)] for i in dice.permutation(len(pool))] for pool in pools]
    trains = [pool[test : test + train] for pool in drawn]
    return Split(*_mixed(trains, dice), *_mixed([pool[:test] for pool in drawn], dice))


def number(*parts: str | int) -> int:
    """Return a seed that these parts tell, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6])


def _mixed(texts: list[Texts], dice: np.random.Generator) -> tuple[Texts, Tensor]:
    """Return the texts of all classes in a random order, and their classes."""
    all_of_them = [(text, label) for label, pool in enumerate(texts) for text in pool]
    order = [all_of_them[int(i)] for i in dice.permutation(len(all_of_them))]
    return [text for text, _ in order], torch.tensor([label for _, label in order])


@cache
def _pools(task: str) -> list[Texts]:
    """Return the texts of each class; one that two classes have is left out."""
    pools = [_tokens(source) for source in TASKS[task].values()]
    counts = Counter(tuple(text) for pool in pools for text in pool)
    return [[text for text in pool if counts[tuple(text)] == 1] for pool in pools]


def _tokens(source: Source) -> Texts:
    """Return the tokens of a random choice of the source's texts, which is kept in a file."""
    place = QUALITY / "text" / f"{source}-{MOST}x{MOST_TOKENS}.npz"
    if not place.exists():
        texts = source.texts()
        chosen = np.random.default_rng(number(str(source))).permutation(len(texts))[:MOST]
        _keep(tokenised([texts[int(i)] for i in chosen]), place)
    with np.load(place, allow_pickle=False) as kept:
        return [part.tolist() for part in np.split(kept["tokens"], kept["ends"][:-1])]


def _keep(texts: Texts, place: os.PathLike[str]) -> None:
    """Write the file; it appears whole or not at all."""
    os.makedirs(os.path.dirname(place), exist_ok=True)
    draft = f"{os.fspath(place)}.{os.getpid()}.npz"
    flat = np.array([token for text in texts for token in text], dtype=np.uint16)
    np.savez_compressed(draft, tokens=flat, ends=np.cumsum([len(text) for text in texts]))
    os.replace(draft, place)
