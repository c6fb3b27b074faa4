"""The model card of a version as text: what it is, what it was made of, and the commands that make it again. Pure.

It says nothing of a clock, a host or a path: the same checkpoints in the same order give the same bytes.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..state.wording import shown
from .front_matter import with_front_matter

SPECIAL = re.compile(r"[\\`*_{}\[\]()<>#+!|~&:@$^=]")  # of Markdown, of HTML in it, and of what is made a link unasked
REPOSITORY = re.compile(r"([\w][\w.-]*/)?[\w][\w.-]*", re.ASCII)
WORD = re.compile(r"[\w.+-]{1,60}", re.ASCII)  # a licence, a task: as the Hub writes them
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
CHECKED = """`mergd_manifest.json` has the size and the BLAKE3 digest of every other file in this folder (`b3sum FILE` prints the
latter), and all numbers in full. A digest of a checkpoint is one of its content: another sharding has the same.
"""


def card_of(facts: Mapping[str, Any], said: Mapping[str, Any], *, transformers: bool) -> str:
    """Return the card of a version.

    facts: what its manifest says. said: the front matter of the base model's card. transformers: whether they load it.
    """
    parts = (_what(facts), _licences(facts, said), _table(facts), _others(facts), _again(facts), CHECKED)
    return with_front_matter(_front(facts, said, transformers), "\n".join(filter(None, parts)))


def _front(facts: Mapping[str, Any], said: Mapping[str, Any], transformers: bool) -> dict[str, Any]:
    known = [facts["base"].get("repository"), *(row.get("repository") for row in facts["checkpoints"])]
    models = list(dict.fromkeys(name for name in known if name and REPOSITORY.fullmatch(name)))
    values = {
        "base_model": models,
        "base_model_relation": "merge",
        "tags": ["merge", "mergd"],
        "library_name": "transformers" if transformers else None,
        "pipeline_tag": _word(said, "pipeline_tag"),
        "license": None if _has_checkpoints(facts) else _word(said, "license"),
    }
    return {key: value for key, value in values.items() if value}


def _word(said: Mapping[str, Any], key: str) -> str | None:
    value = said.get(key)
    return value if isinstance(value, str) and WORD.fullmatch(value) else None


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
    licence = _word(said, "license")
    bases = f"The base model's card says `{licence}`." if licence else "The base model's is not known here."
    theirs = " Those of the checkpoints are not known here: ask before you pass this model on."
    return f"## Licence\n\n{bases}{theirs if _has_checkpoints(facts) else ''}\n"


def _table(facts: Mapping[str, Any]) -> str:
    rows, more = facts["checkpoints"], facts["more"]
    if not _has_checkpoints(facts):
        return "## Checkpoints\n\nThere is none in it: these are the base model's weights.\n"
    before = f"{more} more were folded before these, or are not known any more.\n\n" if more else ""
    lines = "\n".join(_row([str(number), *_cells(row)]) for number, row in enumerate(rows, start=more + 1))
    return f"## Checkpoints\n\nIn the order of their folds.\n\n{before}{_row(HEADS)}\n{_row(['---'] * len(HEADS))}\n{lines}\n"


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    yield cell(row["name"])
    yield f"`{(row['digest'] or '')[:DIGITS]}`"
    yield f"`{row['commit']}`" if "commit" in row else ""
    yield _number(row["share"])
    yield f"v{row['version']}"
    yield _number(row.get("scale"))
    yield _number(row.get("readout_norm"))


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
    yield f"mergd init --base {shlex.quote(at)} --watch DROP --state STATE --rule {shlex.quote(rule)} {' '.join(given)}"
    steps = [
        (row["version"], 0, _fold(row, number)) for number, row in enumerate(facts["checkpoints"], facts["more"] + 1)
    ]
    for other in facts["others"]:
        if "version" in other.get("removed", {}):
            steps.append((other["removed"]["version"], 0, _fold(other["removed"], None)))
        steps.append((other["version"], 1, _command(other, facts)))
    yield from (line for _, _, line in sorted(steps, key=lambda step: step[:2]))


def _fold(row: Mapping[str, Any], number: int | None) -> str:
    which = f"CHECKPOINT-{number}" if number else "CHECKPOINT"
    notes = [] if number else [f"of content {(row['digest'] or '')[:DIGITS]}"]
    notes += [f"share = {row['share']}"] if row["share"] != 1.0 else []
    return f"mergd fold {which}" + (f"  # {', '.join(notes)}" if notes else "")


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
