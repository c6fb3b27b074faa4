"""Digests of all that is hashed in bulk, BLAKE3: no processor makes it slow, and `b3sum` computes it by hand."""

from pathlib import Path

from blake3 import blake3

from .errors import Misconfigured

DIGESTS = "blake3"  # what a state says of its own
PIECE = 2**20  # bytes read at once

Digest = blake3  # running: update(), hexdigest()


def digest_of(data: bytes | memoryview) -> str:
    """Return the digest of a few bytes."""
    return Digest(data).hexdigest()


def digest_of_file(path: Path) -> str | None:
    """Return the digest of a file, None if it is gone."""
    digest = Digest()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def check_digests(said: object) -> None:
    """Raise Misconfigured unless a state's digests are those of now: each of its files would be called damaged."""
    if said != DIGESTS:
        raise Misconfigured(
            f"this state was made by a mergd whose digests were {said or 'sha256'}, and they are {DIGESTS} now",
            "make a new one: mergd init --help",
        )
