"""Files that are hashed, checked and flushed, with the operating system's errors put into our words.

Knows nothing of manifests and artefacts.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from clipskip.engines.errors import ClipskipError, DeviceOutOfMemory, StorageError

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MANY = {errno.EMFILE, errno.ENFILE}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR}
_BLOCK = 1 << 20
_ROOM = 1 << 30  # bytes of address space without which libraries fail
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotAFileError(Exception):
    """There is no regular file at this path (missing, a link, a folder, a pipe)."""


@contextmanager
def open_regular(path: Path) -> Iterator[FileIO]:
    """Open without following links and without hanging on a pipe. NotAFileError, StorageError."""
    if "\0" in str(path):
        raise NotAFileError("is no file name: it contains NUL")
    try:
        with FileIO(path, "rb", opener=_open) as file:
            yield file
    except OSError as error:
        if error.errno in _ABSENT:
            raise NotAFileError("is a symbolic link" if path.is_symlink() else "is missing") from error
        raise storage_error(error, path) from error


def _open(path: str, flags: int) -> int:
    if not hasattr(os, "O_NOFOLLOW") and not stat.S_ISREG(os.lstat(path).st_mode):  # Windows
        raise NotAFileError("is a symbolic link" if os.path.islink(path) else "is not a regular file")
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFileError("is not a regular file")
    return descriptor


def sha256_of(file: FileIO) -> str:
    """SHA-256 hex of what is left to read."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    while count := file.readinto(block):
        digest.update(block[:count])
    return digest.hexdigest()


def state_of(file: FileIO) -> tuple[int, ...]:
    """Numbers that change whenever the file's bytes may have changed; the first is its size."""
    now = os.fstat(file.fileno())
    return now.st_size, now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns


def flush_and_hash(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file that is on the disk for good."""
    with open_regular(path) as file:
        os.fsync(file.fileno())
        digest = sha256_of(file)
        return state_of(file)[0], digest


def flush(path: Path) -> None:
    """Wait until the disk holds this file's bytes or this folder's names."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot flush a folder, which is no reason to lose a build
            raise
    finally:
        os.close(descriptor)


@contextmanager
def translated(root: Path) -> Iterator[None]:
    """Turn the operating system's errors into a StorageError about `root`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, root) from error


def full_disk(error: BaseException | None) -> OSError | None:
    """The operating system's "no room" that `error` is or was caused by."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def storage_error(error: OSError, path: Path, needed: str = "more") -> StorageError:
    """The StorageError that says what the operating system's error means for `path`."""
    if error.errno in _FULL:
        return full(path, needed, f" ({error.strerror})")
    if error.errno in _FORBIDDEN:
        return StorageError(f"no permission to use {path} ({error.strerror})", path=path, hint="check owner and mode")
    hint = "close some, or raise the limit: ulimit -n" if error.errno in _MANY else None
    return StorageError(f"{error.filename or path}: {error.strerror or error}", path=path, hint=hint)


def shortage(error: BaseException, room: int = 0) -> ClipskipError | None:
    """What this process has no more of, files or memory: asked where a library fails, which may want `room` bytes."""
    if isinstance(error, ModuleNotFoundError):
        return None
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
        mmap.mmap(-1, max(_ROOM, room)).close()  # takes address space, but no memory
        if isinstance(error, MemoryError):
            raise OSError(errno.ENOMEM, "")
    except OSError as lack:
        if lack.errno in _MANY:
            return storage_error(lack, Path(os.devnull))
        hint = "ask for less, close other programs, or raise the limit: ulimit -v"
        return DeviceOutOfMemory("there is not enough memory", hint=hint)
    return None


@contextmanager
def shortage_named(room: int = 0) -> Iterator[None]:
    """Whatever a library raises, where it is for lack of something, as the error that says so."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, ClipskipError) and (lack := shortage(error, room)):
            raise lack from error
        raise


def own_folder() -> Path | None:
    """The folder for caches and locks that is this user's alone, made where it is missing; None where there is none.

    What a library compiled is run unseen when it is read again, so nobody else may have a say in it.
    """
    with suppress(OSError, RuntimeError):  # the latter from Path.home()
        base = Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache")
        folder = base.absolute() / "clipskip"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.lstat()
        mine = not hasattr(os, "geteuid") or (state.st_uid == os.geteuid() and not state.st_mode & _OTHERS)
        return folder if mine and stat.S_ISDIR(state.st_mode) else None
    return None


def others_may_write(path: Path) -> bool:
    """Whether more than its owner may change this; a group of the owner's own number has no other members."""
    with suppress(OSError):
        state = path.lstat()
        group = state.st_mode & stat.S_IWGRP and state.st_gid != state.st_uid
        return os.name == "posix" and not path.is_symlink() and bool(state.st_mode & stat.S_IWOTH or group)
    return False


def full(path: Path, needed: str, reason: str = "") -> StorageError:
    """The StorageError for a disk without room."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = readable_size(shutil.disk_usage(existing).free)
    message = f"no room in {path}{reason}: needs {needed}, {free} free"
    return StorageError(message, path=path, hint="free some space or use another folder")


def folder_size(folder: Path) -> int:
    """Bytes in all files below the folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def readable_size(count: float) -> str:
    """1234567 -> "1.2 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
