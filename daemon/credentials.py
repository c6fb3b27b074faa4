"""Secrets: the configuration has the name of a credential, or the path of a file, and never what is in it."""

import os
import re
from pathlib import Path

from ..state.errors import Misconfigured, NotPermitted

LONGEST = 4096  # bytes


def credential_path(name: str, setting: str) -> Path:
    """Return where a secret lies. Raises Misconfigured for a credential of systemd's without systemd."""
    path, credentials = Path(name).expanduser(), os.environ.get("CREDENTIALS_DIRECTORY")
    if path.is_absolute():
        return path
    if not credentials:
        raise Misconfigured(
            f"{setting} is the name of a credential, {name}, and systemd gave none",
            "have the unit load it (LoadCredential=), or give the whole path of a file",
        )
    return Path(credentials) / path


def read_credential(name: str, setting: str) -> bytes:
    """Return a secret of one line. Raises Misconfigured or NotPermitted."""
    path = credential_path(name, setting)
    try:
        with path.open("rb") as file:
            secret = file.read(LONGEST + 1).strip()
    except PermissionError:
        raise NotPermitted(f"this user may not read {path}", "let its owner be the daemon's user") from None
    except OSError:
        secret = b""
    if not re.fullmatch(rb"[!-~]{1,%d}" % LONGEST, secret):
        raise Misconfigured(f"{setting}: there is no secret in {path}, or more than one", "put one there, in one line")
    return secret
