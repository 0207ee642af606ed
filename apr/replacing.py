"""Putting a file or a folder in the place of an old one, so that a kill or a power cut leaves one of the two, whole.

    .NAME.PID.tmp    what process PID writes beside NAME
    .NAME.PID.old    what was NAME, while a file system without an atomic exchange has neither

What dead processes left is deleted, or put back, by the next process that writes there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from pathlib import Path

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2
_HERE = -100  # AT_FDCWD: paths are relative to the working directory
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_LEFT = re.compile(r"\.(.+)\.(\d+)\.(tmp|old)")


def beside(path: Path, end: str = "tmp") -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder `new` in the place of `path`, which may be there. Everything is on disk before the old one is deleted."""
    sync_tree(new)
    if not os.path.lexists(path):
        new.rename(path)
        sync(path.parent)
        return
    old = new
    if not _exchanged(new, path):  # for a moment there is only the old one, under a name that `sweep` puts back
        old = beside(path, "old")
        path.rename(old)
        new.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False if the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def sync(path: Path) -> None:
    """Return when a file, or the list of names in a folder, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some file systems sync no folders
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Return when a folder and everything in it is on disk."""
    for place, _, files in os.walk(folder):
        for name in files:
            if not (path := Path(place, name)).is_symlink():
                sync(path)
        sync(Path(place))


def sweep(folder: Path, name: str | None = None) -> None:
    """Delete what dead processes left in `folder` while they wrote `name` (None: anything); put an old folder back that they
    had moved away."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # not there, or not to be read
    for entry in entries:
        found = _LEFT.fullmatch(entry.name)
        if found is None or name not in (None, found[1]) or _alive(int(found[2])):
            continue
        path = Path(entry.path)
        place = path.with_name(found[1])
        if found[3] == "old" and not os.path.lexists(place):
            path.rename(place)
        elif entry.is_dir(follow_symlinks=False):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sweep_run(run: Path) -> None:
    """`sweep` a run directory and the folders in it. Only for whoever holds its lock."""
    sweep(run)
    for folder in run.glob("*/"):
        sweep(folder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
