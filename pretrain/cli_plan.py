"""`pretrain plan`: what a run will cost, before anything is allocated, downloaded or paid."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shards.errors import UserError, nearest

WORLDS = (1, 8, 32, 128, 512, 1024)


def plan(
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value, over the file.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; see configs/.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each.")] = 8,
    gpu: Annotated[str, typer.Option(help="Their kind: b200, h200, h100, h100-pcie, a100, l40s or l4.")] = "h100",
    peak_tflops: Annotated[float | None, typer.Option(min=1e-3, help="Of one GPU, in place of the kind's.")] = None,
    memory: Annotated[float | None, typer.Option(min=1e-3, help="GB of one GPU, in place of the kind's.")] = None,
    link: Annotated[float | None, typer.Option(min=1e-3, help="GB/s between GPUs of a node, each way.")] = None,
    network: Annotated[float, typer.Option(min=1e-3, help="GB/s out of a node, each way.")] = 50.0,
    disk: Annotated[float, typer.Option(min=1e-3, help="GB/s that checkpoints are written with.")] = 1.0,
    mfu: Annotated[float, typer.Option(min=1e-3, max=1.0, help="Share of the peak that products reach.")] = 0.3,
    sample_kb: Annotated[float, typer.Option(min=1e-3, help="kB of a pair, where the shards are not here.")] = 60.0,
    vocabulary: Annotated[int | None, typer.Option(min=1, help="Tokens, where the tokenizer is not here.")] = None,
    scaling: Annotated[bool, typer.Option("--scaling", help="Also on 1 to 1,024 GPUs, a minute of reckoning.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Tell memory by part, time per step, bytes sent, days and GPU-hours of a run that is not started.

    Example: pretrain plan --config configs/systems/albef.yaml --nodes 4 --gpus 8 --gpu a100 engine.precision=bf16
    """
    from rich.console import Console

    from pretrain.config import PretrainConfig
    from pretrain.devices import GPUS
    from pretrain.planning import table
    from pretrain.planning.plan import advice, at_sizes, check_split, make_plan
    from pretrain.planning.sources import read_shards, read_vocabulary
    from pretrain.planning.speed import Cluster
    from pretrain.settings import load_config

    chosen = load_config(PretrainConfig, config, overrides or [])
    if gpu not in GPUS:
        raise UserError(
            f"`--gpu` (={gpu}) is not known{nearest(gpu, list(GPUS))}; --peak-tflops and --memory describe one"
        )
    kind = GPUS[gpu]
    flops = kind.flops_fp32 if chosen.engine.precision == "fp32" else kind.flops
    tokens, shards = read_vocabulary(chosen, vocabulary), read_shards(chosen)
    cluster = Cluster(
        nodes=nodes,
        gpus=gpus,
        flops=peak_tflops * 1e12 if peak_tflops else flops,
        mfu=mfu,
        memory=memory * 1e9 if memory else kind.memory,
        link=link * 1e9 if link else kind.link,
        network=network * 1e9,
        disk=disk * 1e9,
        sample=shards.bytes_per_sample if shards else sample_kb * 1e3,
    )
    check_split(chosen, cluster.world)
    found = make_plan(chosen, tokens, cluster, shards.count if shards else None)
    sizes = list(at_sizes(chosen, tokens, cluster, WORLDS)) if scaling else []
    if as_json:
        typer.echo(json.dumps(found.as_json() | {"scaling": [one.as_json() for _, one in sizes]}))
        return
    console = Console()
    console.print(table.memory_table(found), table.speed_table(found, cluster))
    if sizes:
        console.print(table.scaling_table(sizes))
    if not found.fits:
        _warn(found.memory.peak, cluster.memory, advice(chosen, tokens, cluster))
    elif chosen.engine.precision == "fp32":
        typer.echo("engine.precision=bf16 would use the GPU's faster units and keep smaller activations")


def _warn(peak: int, available: float, way: tuple[list[str], int] | None) -> None:
    told = f"warning: {peak / 1e9:.3g} GB do not fit into {available / 1e9:.3g} GB"
    if way:
        settings, then = way
        typer.echo(f"{told}; {' '.join(settings)} would need {then / 1e9:.3g} GB")
    else:
        typer.echo(f"{told}, whatever is saved; take a smaller data.global_batch or more GPUs")
