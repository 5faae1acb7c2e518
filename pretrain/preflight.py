"""What `launch/preflight.sh` runs on every rank: whether a run could start, without starting it."""

import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from pretrain import distributed
from pretrain.agreement import check_agreement
from pretrain.config import PretrainConfig
from pretrain.engine import start_process_group
from pretrain.fetching import fetch_weights
from pretrain.settings import load_config
from pretrain.task import outline
from pretrain.train import check, facts
from shards.console import run
from shards.errors import UserError

BYTES_PER_PARAMETER = 28
"""Of a checkpoint: float32 weights three times (for use, in the module, with the optimizer), AdamW's moments twice."""
PROBE = 64 * 2**20
ROUNDS = 5

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(no_args_is_help=True)
def preflight(
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value, over the file.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; see configs/pretrain/.")] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # deepspeed's launcher passes it
) -> None:
    """Look whether a run could start here, on all ranks that the launcher started."""
    chosen = fetch_weights(load_config(PretrainConfig, config, overrides or []))
    inputs = check(chosen)
    device = start_process_group()
    check_agreement(facts(chosen, inputs))
    _say(f"configuration, data and versions are the same on all {distributed.world()} ranks")
    parameters = sum(p.numel() for p in outline(chosen.model, chosen.objectives, len(inputs.tokenizer)).parameters())
    refusal = _disk(Path(chosen.run.out), parameters * BYTES_PER_PARAMETER * (chosen.run.keep_last + 1))
    if reason := distributed.first_of_ranks(refusal):
        raise UserError(reason)
    _say(f"an all-reduce of {PROBE >> 20} MB moves {_bandwidth(device):.2f} GB/s through each rank")


def _disk(out: Path, needed: int) -> str | None:
    """Writes and deletes `PROBE` bytes beside the run folder; says what is wrong, if anything."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        return f"`run.out` (={out}) must have {needed / 1e9:.1f} GB free for checkpoints, it has {free / 1e9:.1f}"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            before = time.monotonic()
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
            speed = PROBE / (time.monotonic() - before)
    except OSError as error:
        return f"`run.out` (={out}) cannot be written on {socket.gethostname()}: {(error.strerror or '').lower()}"
    _say(
        f"the disk has {free / 1e9:.1f} GB free, checkpoints need {needed / 1e9:.1f}; it writes {speed / 1e6:.0f} MB/s"
    )
    return None


def _bandwidth(device: torch.device) -> float:
    """GB/s of the bus, median of `ROUNDS`: an all-reduce sends and receives 2 (W - 1) / W of its bytes on each rank."""
    values, seconds = torch.zeros(PROBE // 4, device=device), []
    for _ in range(ROUNDS + 1):
        distributed.barrier()
        before = time.monotonic()
        distributed.sum_over_ranks(values).sum().item()  # waits for the device
        seconds.append(time.monotonic() - before)
    world = distributed.world()
    return 2 * (world - 1) / world * PROBE / statistics.median(seconds[1:]) / 1e9


def _say(line: str) -> None:
    if distributed.rank() == 0:
        typer.echo(line)


def main(arguments: Sequence[str] | None = None) -> None:
    run(app, arguments)
