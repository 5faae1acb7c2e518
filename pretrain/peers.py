"""A rank whose peers are gone says so in one sentence; what torch said of it goes into a file.

When a process of the group dies, the others notice in their next collective, each with an error of its backend and
pages of traceback. That is no fault of theirs, and all that a person needs is to look at the rank that died first.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from pretrain.folder import ERRORS
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
        place = _keep(run / ERRORS / f"rank-{rank:05d}.txt", traceback.format_exc())
        reason = str(error).splitlines()[0]
        raise PeerLost(f"rank {rank} lost its peers after step {pulse.step} ({reason}); traceback: {place}") from None


def lost(error: RuntimeError) -> bool:
    """Whether the error is what a collective, or the store, says when others are gone or silent."""
    said = isinstance(error, dist.DistError) or any(name in str(error) for name in BACKENDS)
    return said and not isinstance(error, Stopped)


def _keep(file: Path, text: str) -> str:
    """Where the text is now; a disk that does not take it must not hide what happened."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError:
        sys.stderr.write(text)
        return "above"
    return str(file)
