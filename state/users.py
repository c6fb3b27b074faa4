"""The names of users, for messages and for who owns a checkpoint."""

import os
import pwd
from functools import cache
from pathlib import Path


@cache
def name_of(uid: int) -> str:
    """Return a user's name, or the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def owner_name(path: str | Path) -> str:
    """Return the name of a file's owner; empty if the file is gone or cannot be looked at."""
    try:
        return name_of(os.stat(path).st_uid)
    except OSError:
        return ""
