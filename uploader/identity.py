"""What tells one run directory from every other: who holds its trainer's lock knows that its owner is dead.

A host's name would not do: containers share names, and a run may lie in two directories of one host. A copy
of the directory is another directory, so the file's inode is part of the name.
"""

import os
import re
import secrets

from uploader import below, files
from uploader.layout import RunDirectory

_NAME = re.compile(rb"[0-9a-f]{32}\n")


def identity(directory: RunDirectory) -> str:
    """The name of this very directory, made at the first call; a file that can't be read is made anew.

    Raises:
        DiskError: the directory can't be written.
    """
    path = directory.identity_file
    with files.disk_errors("naming", path):
        files.make_directory(path.parent)
        if not path.exists() or not _NAME.fullmatch(below.read_small(path)):
            files.replace(path, f"{secrets.token_hex(16)}\n".encode())
        return f"{below.read_small(path).decode().strip()}-{os.stat(path).st_ino}"
