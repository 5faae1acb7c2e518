"""Who runs a run: RUN/process.json, by which others tell a run that is going from one that died.

Rank 0 writes it when it begins, and again when it ends in any way that it can notice. A process that was killed, or
whose machine went down, leaves the file as it was: whoever can see the machine's processes sees that it is gone.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from pretrain.folder import PROCESS
from pretrain.stop import Interrupted
from shards.errors import UserError
from shards.storage import write_atomically

Ending = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Process:
    """Rank 0 of a run.

    Attributes:
        machine: The boot of the machine and the namespace of its process numbers, None where the system has no /proc.
        birth: Clock ticks from the boot to the start of the process: numbers are used again, births are not.
        began: Unix seconds, and `ended` likewise, None while it goes or where it could not say.
        reason: Why it failed, in one line.
    """

    host: str
    machine: str | None
    pid: int
    birth: int | None
    began: float
    ended: float | None = None
    ending: Ending | None = None
    reason: str = ""

    @property
    def alive(self) -> bool | None:
        """Whether it is there; None where it cannot be seen from here, being on another machine or in a container."""
        if self.machine is None or self.machine != _machine():
            return None
        return _birth(self.pid) == self.birth


def read_process(run: Path) -> Process | None:
    """The last process that ran `run`; None in a folder of before there was such a file.

    Raises:
        UserError: the file is damaged.
    """
    file = run / PROCESS
    try:
        return _PROCESS.validate_json(file.read_bytes()) if file.is_file() else None
    except ValidationError:
        raise UserError(f"`run` (={run}) is damaged: {PROCESS} does not say who runs it; delete it to go on") from None


_PROCESS = TypeAdapter(Process)


@contextmanager
def announced(run: Path, rank: int) -> Iterator[None]:
    """Says in `run` that this process runs it, and how that ended."""
    if rank != 0:
        yield
        return
    process = Process(socket.gethostname(), _machine(), os.getpid(), _birth(os.getpid()), time.time())
    _write(run, process)
    try:
        yield
    except Interrupted:
        _end(run, process, "stopped")
        raise
    except BaseException as error:
        reason = (str(error).splitlines() or [""])[0]
        _end(run, process, "failed", reason or type(error).__name__)
        raise
    _end(run, process, "finished")


def _end(run: Path, process: Process, ending: Ending, reason: str = "") -> None:
    """A full disk must not hide why the run ended."""
    try:
        _write(run, replace(process, ended=time.time(), ending=ending, reason=reason))
    except UserError as error:
        print(f"{error}; `pretrain status` will call this run dead", file=sys.stderr)


def _write(run: Path, process: Process) -> None:
    write_atomically(run / PROCESS, json.dumps(asdict(process)).encode())


def _machine() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _birth(pid: int) -> int | None:
    """None for a process that is gone, or that is dead and not yet collected by its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold spaces
    except OSError:
        return None
    state, birth = fields[0], int(fields[19])
    return None if state in "ZX" else birth
