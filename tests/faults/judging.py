"""What must hold of a state that was recovered after a kill, whatever the moment of the kill was."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from faults.onehot import BASE, Seen, coordinate_of, counted, digest_of, load, see, weights


def judge(state: Path, before: Seen, folded: Iterable[str] = ()) -> list[str]:
    """Return what is wrong with a recovered state; `before` is what anybody could see between the kill and now.

    folded: the checkpoints that must all be folded by now.
    """
    after = see(state)
    complaints = [
        *(f"SQLite: {text}" for text in after.sound),
        *_lost(before, after),
        *(f"{name} was never folded" for name in folded if name not in after.folded),
        *_doubled(after),
        *_files(state, after),
        *_leftovers(state, after),
        *_archive(state / "archive", after),
    ]
    return [*complaints, *(text for number in after.versions for text in _version(state, after, number))]


def _lost(before: Seen, after: Seen) -> Iterator[str]:
    """What was acknowledged before, by the history or by the files that tell of it, and is no longer true."""
    for version in before.versions.values():
        now = after.versions.get(version.number)
        if now is None or (now.parent, now.name, now.digest) != (version.parent, version.name, version.digest):
            yield f"acknowledged and lost: {version}, now {now}"
    for number, digest in before.told.items():
        if number not in after.versions or after.versions[number].digest != digest:
            yield f"log.jsonl told of v{number}, which is lost"
    if after.moves[: len(before.moves)] != before.moves:
        yield f"moves of the head are lost: {before.moves} became {after.moves}"
    if gone := before.folded - after.folded:
        yield f"were folded, and are not: {gone}"
    if before.served is not None and before.served not in after.versions:
        yield f"current led to v{before.served}, which is lost"


def _doubled(after: Seen) -> Iterator[str]:
    """What counts twice, or is there without ever having been the head."""
    if twice := [k for k, n in after.counts(after.head).items() if n != 1]:
        yield f"the head folded twice: coordinates {twice}"
    if never := set(after.versions) - {move[2] for move in after.moves}:
        yield f"versions that were never the head: {never}"


def _files(state: Path, after: Seen) -> Iterator[str]:
    """The link, and the files that tell of it."""
    if after.served != after.head:
        yield f"current leads to {after.served}, the head is {after.head}"
    if after.told != {number: version.digest for number, version in after.versions.items()}:
        yield f"log.jsonl tells of {after.told}"
    status = json.loads((state / "status.json").read_text())
    if status["head"] != after.head:
        yield f"status.json says that the head is {status['head']}, it is {after.head}"


def _leftovers(state: Path, after: Seen) -> Iterator[str]:
    """What lies there that no row promises."""
    expected = {
        "drafts": set[str](),
        "versions": {f"{number:06d}" for number in after.versions},
        "models": {f"{number:06d}" for number, version in after.versions.items() if version.model}
        | ({"current"} if after.versions else set()),
    }
    for folder, names in expected.items():
        if (there := {path.name for path in (state / folder).iterdir()}) != names:
            yield f"{folder}/ has {sorted(there)}, which should be {sorted(names)}"
    if hidden := [path.name for path in state.iterdir() if path.name.startswith(".")]:
        yield f"left in the state: {hidden}"


def _archive(archive: Path, after: Seen) -> Iterator[str]:
    """The sources that are pinned: of what was folded, and whole."""
    for folder in archive.iterdir() if archive.is_dir() else ():
        name = after.contents.get(folder.name, "")
        there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
        file = there.get(f"{name}/model.safetensors")
        if not name or file is None or file.read_bytes() != weights(coordinate_of(name)):
            yield f"archive/{folder.name} is no source of {name or 'anything'}: {sorted(there)}"


def _version(state: Path, after: Seen, number: int) -> Iterator[str]:
    """The files of one version: those that are promised agree with the manifest, and count what the history says."""
    version, slots, model = after.versions[number], state / f"versions/{number:06d}", state / f"models/{number:06d}"
    try:
        manifest = json.loads((slots / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        yield f"v{number}: its manifest: {error}"
        return
    about = manifest["checkpoint"] or manifest["removed"] or {"name": ""}
    said = (manifest["parent"], manifest["digest"], about["name"])
    if said != (version.parent, version.digest, version.name):
        yield f"v{number}: the manifest says {said}"
    expected = after.counts(number)
    parts = (
        (slots, "slots", "slots-*", version.slots, 0.0, 1.0),
        (model, "model", "*.safetensors", version.model, BASE, version.scale),
    )
    for folder, part, pattern, promised, base, scale in parts:
        there = sorted(folder.glob(pattern))
        if not promised:
            yield from (f"v{number}: {path.name} is promised no more" for path in there)
        elif wrong := [file["name"] for file in manifest[part] if digest_of(folder / file["name"]) != file["blake3"]]:
            yield f"v{number}: not as the manifest says: {wrong}"
        elif (found := counted(load(there), base, scale)) != expected:
            yield f"v{number}: its {part} count {found}, folded were {expected}"
