"""The page's temporary folder: it goes when its process ends, or when the next page starts."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

FOLDERS = "faces_page_"  # what the folders' names begin with
# What ends a program and can be caught. A system has some of them.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK", "SIGUSR1", "SIGUSR2")


def lock_of(folder: Path, timeout: float = -1) -> FileLock:
    """The lock of a folder, a file in it. A process that lives holds it."""
    return FileLock(folder / "lock", timeout, thread_local=False)


def renew(lock: FileLock) -> None:
    """Make the folder and its lock again if the system deleted them as old. Touch the lock, so it stays
    young."""
    path = Path(lock.lock_file)
    if not path.exists():
        lock.release(force=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    os.utime(path)


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder that goes with this process. Every signal that can be caught ends it as Ctrl-C
    does. What pages left that were killed goes now: nobody holds their folders."""
    usual = (signal.SIG_DFL, signal.default_int_handler)  # nohup, for one, has set another
    signals = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    signals = [number for number in signals if signal.getsignal(number) in usual]
    for number in signals:
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix=FOLDERS))
    lock = lock_of(folder)  # a lock that nobody keeps would be released
    lock.acquire()
    try:
        for other in folder.parent.glob(f"{FOLDERS}*"):
            with suppress(OSError):  # held, or just gone
                if other != folder and other.lstat().st_uid == folder.stat().st_uid:
                    with lock_of(other, timeout=0):
                        shutil.rmtree(other)
        yield folder
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)  # a second one would stop this
        lock.release()
        for _ in range(20):  # what still computes may write meanwhile
            shutil.rmtree(folder, ignore_errors=True)
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
