"""Writes docs/peers.md: what the packages' methods and mergd's differ by, and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .cases import WITHOUT_PEER
from .comparing import KINDS, Compared

PATH = Path(__file__).resolve().parents[2] / "docs" / "peers.md"
HEAD = """# mergd beside other packages

Many of mergd's rules are methods that other packages run in batch, over all checkpoints at once. This page holds mergd
against them. Made by

```
make peers COUNT={count} SEED={seed}
```

which installs the packages into environments of their own, makes two small models (a Llama and a CLIP vision tower) and
{count} fine-tunes of each, lets each package merge them in float64, and compares the merged task vectors: norm of the
difference over norm of the package's, by kind of weight, the larger of the two models. The random masks of DARE and
DELLA are drawn with the same numbers everywhere. *Reference* is the batch form in `tests/references/`, which each
of mergd's rules is tested against; *mergd* is what its command line publishes, which keeps its statistics in float32.
{without} have no peer in these packages.

"""
KIND_NAMES = {"matrix": "matrices", "lookup": "embeddings", "other": "others"}


def text(found: Sequence[Compared], versions: Mapping[str, str], count: int, seed: int) -> str:
    """Return the page."""
    reasons = list(dict.fromkeys(reason for one in found for reason in _reasons(one)))
    parts = [HEAD.format(count=count, seed=seed, without=", ".join(f"`{name}`" for name in WITHOUT_PEER))]
    for package, version in versions.items():
        rows = [_row(one, reasons) for one in found if one.case.package == package]
        parts.append(f"## {package} {version}\n\n" + "\n".join([*_heading(), *rows]) + "\n\n")
    told = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    parts.append("## Where they differ, and why\n\n" + "\n".join(told) + "\n")
    return "".join(parts)


def _heading() -> list[str]:
    columns = [
        "its method",
        "mergd's rule",
        *(f"{who}: {KIND_NAMES[kind]}" for who in ("reference", "mergd") for kind in KINDS),
        "why",
    ]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _row(one: Compared, reasons: Sequence[str]) -> str:
    figures = [_figure(values.get(kind)) for values in (one.reference, one.rule) for kind in KINDS]
    numbers = ", ".join(str(reasons.index(reason) + 1) for reason in _reasons(one))
    return "| " + " | ".join([one.case.told, f"`{one.case.rule}`", *figures, numbers]) + " |"


def _figure(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}" if value < 1e-2 else f"{value:.2f}"


def _reasons(one: Compared) -> tuple[str, ...]:
    return (one.case.why if one.differs else ()) + (one.case.rule_why if one.rule_differs else ())
