"""The model card of a version as text: what it is, what it was made of, and the commands that make it again. Pure.

It says nothing of a clock, a host or a path: the same checkpoints in the same order give the same bytes.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..plugins.sources.directory.places import SIDECAR
from ..state.wording import shown
from .front_matter import WORD, with_front_matter, word_of

SPECIAL = re.compile(
    r"[\\`*_{}\[\]()<>#+!|~&:@$^=]|(?<=www)\.", re.IGNORECASE
)  # of Markdown, of HTML in it, and of what is made a link unasked
REPOSITORY = re.compile(r"([\w][\w.-]*/)?[\w][\w.-]*", re.ASCII)
DIGITS = 12  # of a digest
CARD, MANIFEST = WORDS = "README.md", "mergd_manifest.json"  # about a version, and no part of it
HEADS = [
    "#",
    "checkpoint",
    "digest",
    "commit",
    "counts",
    "folded by",
    "scale after it",
    "norm of the read-out after it",
]
NAMES = {  # what licences ask of the name of what is made of a model, and to be shown
    "llama3": ("Llama 3", "Built with Meta Llama 3"),
    **{f"llama{version}": ("Llama", "Built with Llama") for version in ("3.1", "3.2", "3.3", "4")},
}
CHECKED = """`mergd_manifest.json` has the size and the BLAKE3 digest of every other file in this folder (`b3sum FILE` prints the
latter), and all numbers in full. A digest of a checkpoint is one of its content: another sharding has the same.
"""


def card_of(facts: Mapping[str, Any], said: Mapping[str, Any], *, transformers: bool) -> str:
    """Return the card of a version.

    facts: what its manifest says. said: the front matter of the base model's card. transformers: whether they load it.
    """
    parts = (_what(facts), _licences(facts, said), _table(facts, said), _others(facts), _again(facts), CHECKED)
    return with_front_matter(_front(facts, said, transformers), "\n".join(filter(None, parts)))


def _front(facts: Mapping[str, Any], said: Mapping[str, Any], transformers: bool) -> dict[str, Any]:
    known = [facts["base"].get("repository"), *(row.get("repository") for row in facts["checkpoints"])]
    models = list(dict.fromkeys(name for name in known if name and REPOSITORY.fullmatch(name)))
    values = {
        "base_model": models,
        "base_model_relation": "merge",
        "tags": ["merge", "mergd"],
        "library_name": "transformers" if transformers else None,
        "pipeline_tag": word_of(said, "pipeline_tag"),
        "license": _agreed(facts, said),
    }
    return {key: value for key, value in values.items() if value}


def _claimed(facts: Mapping[str, Any], said: Mapping[str, Any]) -> list[str | None]:
    """Return the licences of the base model and of each checkpoint, None for one that is not known."""
    rows = [row.get("licence") for row in facts["checkpoints"]]
    return [word_of(said, "license"), *rows, *([None] if facts["more"] else [])]


def _agreed(facts: Mapping[str, Any], said: Mapping[str, Any]) -> str | None:
    """Return the licence that all of them have."""
    first, *others = _claimed(facts, said)
    return first if first and WORD.fullmatch(first) and all(other == first for other in others) else None


def _has_checkpoints(facts: Mapping[str, Any]) -> bool:
    return bool(facts["checkpoints"] or facts["more"])


# ----------------------------------------------------------------------------------------------------------- in words


def _what(facts: Mapping[str, Any]) -> str:
    base, method = facts["base"], facts["method"]
    commit = f" at commit `{base['commit']}`" if base["commit"] else ""
    name = cell(base["repository"]) + commit if base["repository"] else "a model that has no public name"
    values = ", ".join(f"{cell(key)} {cell(_plain(value))}" for key, value in method["parameters"].items())
    lines, scaled = method["lines"], ""
    if lines != {"alpha": 1.0, "beta": 0.0}:
        scaled = f", of each weight times {lines['alpha']} + {lines['beta']} x its depth in the network, from 0 to 1"
    return f"""# A merged model

This is version {facts["version"]} of a running merge, made by mergd: it folds checkpoints that were fine-tuned from one base
model into one merged model, one after the other, as they arrive. Nothing was trained on the way.

- Base model: {name}, of content `{base["digest"][:DIGITS]}`
- Checkpoints in it: {len(facts["checkpoints"]) + facts["more"]}
- Fold rule: {cell(method["rule"])}{f" ({values})" if values else ""}
- The weights are base + {facts["scale"]:.6g} x the merged task vector{scaled}
- Digest of this version: `{facts["digest"]}`
"""


def _licences(facts: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    licence = word_of(said, "license")
    text = f"The base model's card says `{licence}`." if licence else "The base model's is not known here."
    if _has_checkpoints(facts):
        text += f" {_theirs(facts, said)}"
    names = {one: NAMES[one] for one in _claimed(facts, said) if one in NAMES}
    for one, (name, built) in names.items():
        text += f"""\n\n`{one}` asks whoever passes on a model that was made of such a one to let its name begin with "{name}",
to show "{built}", and to add the licence's text."""
    return f"## Licence\n\n{text}\n"


def _theirs(facts: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    if _agreed(facts, said):
        return "So do those of all checkpoints; these are claims of their owners."
    if not _are_told(facts, said):
        return "Those of the checkpoints are not known here: ask before you pass this model on."
    return "Those of the checkpoints are in the table, as their owners claim them: ask before you pass this model on."


def _are_told(facts: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether the table has the licences: they do not agree, and some are known."""
    return not _agreed(facts, said) and any(row.get("licence") for row in facts["checkpoints"])


def _table(facts: Mapping[str, Any], said: Mapping[str, Any]) -> str:
    rows, more = facts["checkpoints"], facts["more"]
    if not _has_checkpoints(facts):
        return "## Checkpoints\n\nThere is none in it: these are the base model's weights.\n"
    before = f"{more} more were folded before these, or are not known any more.\n\n" if more else ""
    told = _are_told(facts, said)
    heads = [*HEADS, *(["licence"] if told else [])]
    lines = "\n".join(_row([str(number), *_cells(row, told)]) for number, row in enumerate(rows, start=more + 1))
    return f"## Checkpoints\n\nIn the order of their folds.\n\n{before}{_row(heads)}\n{_row(['---'] * len(heads))}\n{lines}\n"


def _cells(row: Mapping[str, Any], told: bool) -> Iterator[str]:
    yield cell(row["name"])
    yield f"`{(row['digest'] or '')[:DIGITS]}`"
    yield f"`{row['commit']}`" if "commit" in row else ""
    yield _number(row["share"])
    yield f"v{row['version']}"
    yield _number(row.get("scale"))
    yield _number(row.get("readout_norm"))
    if told:
        yield cell(row["licence"]) if row.get("licence") else "not known"


def _others(facts: Mapping[str, Any]) -> str:
    """Return what else was done on the way, if anything."""
    if not facts["others"]:
        return ""
    lines = [
        f"- v{other['version']}: {_done(other)}; the scale after it was {other['scale']:.6g}."
        for other in facts["others"]
    ]
    return "\n".join(["## What else was done", "", *lines, ""])


def _done(other: Mapping[str, Any]) -> str:
    if (gone := other.get("removed")) is not None:
        again = "by subtraction" if other["how"] == "subtraction" else "by folding those after it once more"
        what = f"{cell(gone['name'])}, of content `{(gone['digest'] or '')[:DIGITS]}`"
        return f"{what}, was taken out, {again}" + (f"; v{gone['version']} had folded it" if "version" in gone else "")
    doing = {"read-out": "what is kept was read out anew", "re-merge": "all were merged anew from their sources"}
    left_out = ", ".join(map(cell, other.get("left_out", ())))
    without = f", without {left_out}, whose sources were gone" if left_out else ""
    return f"{doing[other['cause']]}, by {cell(other['rule'])}{without}"


# -------------------------------------------------------------------------------------------------- how to make it again


def _again(facts: Mapping[str, Any]) -> str:
    gone = "What is not listed above comes first.\n\n" if facts["more"] else ""
    return f"""## How to make it again

BASE is the base model, DROP and STATE are two new folders, and CHECKPOINT-1 is where the first one of the table lies. With the
same version of torch, on the same kind of processor, the same weights come of it.

{gone}```sh
{chr(10).join(_commands(facts))}
```
"""


def _commands(facts: Mapping[str, Any]) -> Iterator[str]:
    base = facts["base"]
    at = f"{base['repository']}@{base['commit']}" if base["repository"] and base["commit"] else "BASE"
    pinned = dict(facts["pinned"])
    rule, parameters = pinned.pop("rule"), pinned.pop("parameters")
    given = [_set(f"{key}.{part}" if part else key, value) for key, part, value in _flat(pinned)]
    given += [_set(key, value) for key, value in parameters.items() if value is not None]
    if shares := [row["share"] for row in _rows(facts) if row["share"] != 1.0]:
        given += [_set("trust_sidecar", True), _set("weight_range", [min(*shares, 1.0), max(*shares, 1.0)])]
    yield f"mergd init --base {shlex.quote(at)} --watch DROP --state STATE --rule {shlex.quote(rule)} {' '.join(given)}"
    steps = [
        (row["version"], 0, _fold(row, number)) for number, row in enumerate(facts["checkpoints"], facts["more"] + 1)
    ]
    for other in facts["others"]:
        if "version" in other.get("removed", {}):
            steps.append((other["removed"]["version"], 0, _fold(other["removed"], None)))
        steps.append((other["version"], 1, _command(other, facts)))
    yield from (line for _, _, line in sorted(steps, key=lambda step: step[:2]))


def _rows(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every checkpoint that the commands fold, with those that are taken out again."""
    gone = [other["removed"] for other in facts["others"] if "version" in other.get("removed", {})]
    return [*facts["checkpoints"], *gone]


def _fold(row: Mapping[str, Any], number: int | None) -> str:
    which = f"CHECKPOINT-{number}" if number else "CHECKPOINT"
    note = "" if number else f"  # of content {(row['digest'] or '')[:DIGITS]}"
    says = f"echo 'share = {row['share']}' > {which}/{SIDECAR}\n" if row["share"] != 1.0 else ""
    return f"{says}mergd fold {which}{note}"


def _command(other: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    if "removed" in other:
        exact = " --exact" if other["how"] != "subtraction" else ""
        return f"mergd remove {other['removed']['digest']}{exact}"
    method = facts["pinned"] | other["method"]
    verb = "publish" if other["cause"] == "read-out" else "remerge"
    values = " ".join(_set(key, value) for key, value in method["parameters"].items() if value is not None)
    lines = f"--lines {method['lines']['alpha']} {method['lines']['beta']}"
    return f"mergd {verb} --rule {shlex.quote(method['rule'])} {values} --scale {method['scale']} {lines}".replace(
        "  ", " "
    )


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, value in values.items():
        yield from (
            ((key, part, inner) for part, inner in value.items()) if isinstance(value, dict) else [(key, "", value)]
        )


def _set(key: str, value: Any) -> str:
    return f"--set {shlex.quote(f'{key}={_plain(value)}')}"


# ------------------------------------------------------------------------------------------------------------ escaping


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def cell(text: object) -> str:
    """Return foreign text as it may stand in a line of Markdown, or in a cell of a table: as what it is, and no more."""
    return SPECIAL.sub(r"\\\g<0>", shown(text)).strip() or "(no name)"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
