"""A notice, and what a hook gets of it."""

from mergd.state.records import Notice

NOTICE = Notice(
    7, "fold-abc", "fold", 1, 2, "mergd run", "fold", "/state/models/000002", "d" * 64, "2026-01-01T00:00:00Z"
)
TOLD = {
    "id": "fold-abc", "seq": 7, "kind": "fold", "version": 2, "from": 1, "to": 2, "who": "mergd run", "why": "fold",
    "path": "/state/models/000002", "digest": "d" * 64, "at": "2026-01-01T00:00:00Z",
}  # fmt: skip
