"""Does a path lie on a network file system? There the kernel tells of what this machine does, not of what others do."""

import ctypes
import os
from pathlib import Path

# The first field of statfs(2); the numbers are those of linux/magic.h and of the file systems' own sources.
MAGIC = frozenset({
    0x6969,  # NFS
    0xFF534D42, 0xFE534D42, 0x517B,  # CIFS, SMB2, SMB
    0x65735546,  # FUSE: sshfs, s3fs, GlusterFS; also virtiofs
    0x01021997,  # 9p
    0x00C36400,  # Ceph
    0x5346414F,  # AFS
    0x0BD00BD0,  # Lustre
    0x47504653,  # GPFS
    0x7461636F,  # OCFS2
    0x01161970,  # GFS2
})  # fmt: skip
_LIBC = ctypes.CDLL(None, use_errno=True)
_FIELDS = 32  # of a long each: statfs is shorter on every Linux


def on_network(path: Path) -> bool:
    """Whether a path lies on a network file system; where that cannot be asked, it does not."""
    answer = (ctypes.c_long * _FIELDS)()
    if _LIBC.statfs(os.fsencode(path), ctypes.byref(answer)) != 0:
        return False
    return answer[0] & 0xFFFFFFFF in MAGIC
