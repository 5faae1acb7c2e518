"""Not a test: the command `pretrain`, in which the second checkpoint of one rank meets a disk of its own.

python -m tests.faults.own_disk RANK full|readonly|frozen DISK [arguments of pretrain ...]
Needs root: that rank gets a mount namespace, so that the others see the folder as it is. DISK, where a frozen one is
mounted, is thawed when the fourth checkpoint begins.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pretrain.cli import main
from pretrain.saving import Saver

CLONE_NEWNS = 0x20000


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def spoil(how: str, disk: str, trainer: Path) -> None:
    """Mounts the disk where this rank is about to write."""
    trainer.mkdir(parents=True, exist_ok=True)
    if how == "frozen":
        run("mount", "--bind", disk, trainer)
        run("fsfreeze", "--freeze", disk)
        return
    run("mount", "-t", "tmpfs", "-o", "size=64k" + (",ro" if how == "readonly" else ""), "tmpfs", trainer)
    if how == "full":
        (trainer / "filler").write_bytes(bytes(64 << 10))


def meet(how: str, disk: str) -> None:
    start, write = Saver.start, Saver._write

    def started(saver: Saver, *arguments: Any, **options: Any) -> None:
        if how == "frozen" and saver._begun == 3:
            saver.finish()
            run("fsfreeze", "--unfreeze", disk)
            for job in saver._hanging:
                job._thread.join()
        start(saver, *arguments, **options)

    def written(saver: Saver, partial: Path, *arguments: Any) -> Any:
        if saver._begun == 2:
            spoil(how, disk, partial / "trainer")
        return write(saver, partial, *arguments)

    Saver.start, Saver._write = started, written  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, how, disk, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "unshare")
        run("mount", "--make-rprivate", "/")
        meet(how, disk)
    main(arguments)
