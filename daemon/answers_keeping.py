"""How answers about what is kept look to people: tags, and what retention keeps or lets go."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..state.wording import size
from .display import out, safe


def tags(values: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each tag."""
    if not values:
        out.print("no version has a tag; to give the head one: mergd tag NAME")
    width = max((len(value["tag"]) for value in values), default=0)
    for value in values:
        at = value["at"][:16].replace("T", " ")
        out.print(f"[bold]{safe(value['tag'].ljust(width))}[/]  v{value['version']}  {at}  by {safe(value['who'])}")


def tagged(answer: Mapping[str, Any]) -> None:
    """Say which version has the name now."""
    before = f" (it was v{answer['before']})" if answer["before"] not in (None, answer["version"]) else ""
    out.print(f"v{answer['version']} is {safe(answer['tag'])}{before}, and kept while it is")


def untagged(answer: Mapping[str, Any]) -> None:
    """Say that a name is gone, and what still keeps its version."""
    left = ", ".join(answer["kept_for"])
    out.print(f"{safe(answer['tag'])} is no tag any more; it was v{answer['version']}")
    out.print(f"    still kept: {safe(left)}" if left else "    nothing else keeps it: retention drops its files")


def planned(answer: Mapping[str, Any]) -> None:
    """Print each part of each version that has files: its bytes, and why it is kept or that it would go."""
    for entry in answer["versions"]:
        for part in ("model", "slots"):
            if part in entry:
                kept = ", ".join(entry[part]["kept_for"])
                why = f"kept: {safe(kept)}" if kept else "[bold]would be dropped[/]"
                out.print(f"[bold]v{entry['version']}[/]  {part}  {size(entry[part]['bytes']):>9}  {why}")
    out.print(f"it would free {size(answer['freed'])}")


def dropped(answer: Mapping[str, Any]) -> None:
    """Print what was dropped, and what that freed."""
    for entry in reversed(answer["versions"]):
        gone = [part for part in ("model", "slots") if part in entry and not entry[part]["kept_for"]]
        if gone:
            out.print(f"v{entry['version']}: {' and '.join(gone)} dropped; the log keeps its line")
    out.print(f"{size(answer['freed'])} freed, {size(answer['used'])} in use; why the rest is kept: mergd gc -n")
