"""Every style in which a checkpoint arrives, by name; those that no rule can know to be incomplete, and what helps."""

from collections.abc import Callable, Mapping

from support.arriving import (
    READ_BY_ALL,
    Arrival,
    copy,
    cp,
    hard_links,
    move,
    preallocated,
    replaced,
    shards_before_index,
)
from support.arriving_tools import git_lfs, hub_download, rsync, save_pretrained, sha256


def zeros_first(arrival: Arrival) -> None:
    """Zeros are written first, then the content over them: there is no hole, and no size that grows."""
    arrival.place.mkdir(exist_ok=True)
    for path in arrival.files():
        target = arrival.place / path.name
        header = path.read_bytes()[:4096]
        target.write_bytes(header + bytes(path.stat().st_size - len(header)))
        target.chmod(READ_BY_ALL)
    for path in arrival.files():
        copy(arrival, path, arrival.place / path.name, flags=0)


def with_manifest(arrival: Arrival) -> None:
    """The digests come first; then what no rule could know to be incomplete."""
    arrival.place.mkdir()
    sums = [f"{sha256(path.read_bytes())}  {path.name}\n" for path in sorted(arrival.source.iterdir())]
    (arrival.place / "SHA256SUMS").write_text("".join(sums))
    zeros_first(arrival)


def with_marker(arrival: Arrival) -> None:
    """What no rule could know to be incomplete; at the end a marker says that it is complete."""
    zeros_first(arrival)
    last = max(path.stat().st_ctime_ns for path in arrival.place.iterdir())
    marker = arrival.place / "READY"
    marker.touch()
    while marker.stat().st_ctime_ns <= last:
        marker.touch()


STYLES: Mapping[str, Callable[[Arrival], None]] = {
    "cp -r": cp,
    "rsync": rsync(),
    "rsync --inplace": rsync("--inplace"),
    "rsync --preallocate": rsync("--preallocate"),
    "rsync --delay-updates": rsync("--delay-updates"),
    "mv": move,
    "hard links": hard_links,
    "git-lfs": git_lfs,
    "save_pretrained": save_pretrained,
    "shards before index": shards_before_index,
    "hf download": hub_download,
    "preallocated": preallocated,
    "a copy that stalls": cp,
    "replaced while folded": replaced,
    "zeros first": zeros_first,
    "zeros first, with manifest": with_manifest,
    "zeros first, with marker": with_marker,
}
UNKNOWABLE = ("zeros first",)  # to another user who stalls for longer than quiet_unsure
MARKED = ("zeros first, with marker",)  # safe where the setting marked_only asks for markers
KNOWN = tuple(style for style in STYLES if style not in (*UNKNOWABLE, *MARKED))
