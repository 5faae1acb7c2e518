"""A rank whose peers are gone says so in one sentence; what torch said of it goes into a file.

When a process of the group dies, the others notice in their next collective, each with an error of its backend and
pages of traceback. That is no fault of theirs, and all that a person needs is to look at the rank that died first.
"""

import contextlib
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from pretrain.folder import CONFIG, ERRORS
from pretrain.stop import RESTART
from pretrain.watchdog import Pulse
from shards.errors import Stopped

BACKENDS = ("gloo/transport/", "NCCL", "Socket Timeout", "TCPStore")
"""What the messages of plain RuntimeErrors name."""


class PeerLost(Stopped):
    """Another rank is gone. The command ends with the status that means "again"."""

    status = RESTART


@contextlib.contextmanager
def peers_needed(run: Path, rank: int, pulse: Pulse) -> Iterator[None]:
    """Turns an error of the group's backend into `PeerLost`, with its traceback in `run`/errors/.

    Args:
        pulse: Knows the last step.
    """
    try:
        yield
    except RuntimeError as error:
        if not lost(error):
            raise
        place = _keep(run, rank, traceback.format_exc())
        raise PeerLost(
            f"rank {rank} lost its peers after step {pulse.step} ({_short(error)}); traceback: {place}"
        ) from None


def lost(error: RuntimeError) -> bool:
    """Whether the error is what a collective, or the store, says when others are gone or silent."""
    said = isinstance(error, dist.DistError) or any(name in str(error) for name in BACKENDS)
    return said and not isinstance(error, Stopped)


def _short(error: RuntimeError) -> str:
    """What happened, without the place in the backend's source before it and the advice behind it."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).splitlines()[0].split(". ")[0]


def _keep(run: Path, rank: int, text: str) -> str:
    """Where the text is now; a disk that does not take it must not hide what happened.

    A folder that is not a run's yet must stay empty: the next start would refuse it.
    """
    folder = run / ERRORS if (run / CONFIG).is_file() else Path(tempfile.gettempdir(), "duostream")
    file = folder / f"rank-{rank:05d}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError:
        sys.stderr.write(text)
        return "above"
    return str(file)
