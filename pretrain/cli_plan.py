"""`pretrain plan`: what a run will cost, before anything is allocated, downloaded or paid."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.errors import UserError, nearest

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig
    from pretrain.planning.plan import Plan
    from pretrain.planning.sources import Corpus
    from pretrain.planning.speed import Cluster

WORLDS = (1, 8, 32, 128, 512, 1024)
MFU = 0.15
"""With which plans agree with published speeds on A100: 128 of them trained CLIP ViT-B/32 at 93,294 samples/s
(arXiv:2212.07143, trained_models_info.csv of its data), 8 ALBEF in two to four days (its authors, in TF32)."""
GATHERING = 0.2
"""Share of a step from which on the gathering of features is worth a word."""


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
    mfu: Annotated[float, typer.Option(min=1e-3, max=1.0, help="Share of the peak that products reach.")] = MFU,
    sample_kb: Annotated[float, typer.Option(min=1e-3, help="kB of a pair, where the shards are not here.")] = 60.0,
    vocabulary: Annotated[int | None, typer.Option(min=1, help="Tokens, where the tokenizer is not here.")] = None,
    bank: Annotated[tuple[int, int] | None, typer.Option(help="Its texts and groups, without the shards.")] = None,
    scaling: Annotated[bool, typer.Option("--scaling", help="Also on 1 to 1,024 GPUs, a minute of reckoning.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Tell memory by part, time per step, bytes sent, days and GPU-hours of a run that is not started.

    Example: pretrain plan --config configs/systems/albef.yaml --nodes 4 --gpus 8 --gpu a100 engine.precision=bf16
    """
    from pretrain.config import PretrainConfig
    from pretrain.planning.plan import at_sizes, check_split, make_plan
    from pretrain.planning.sources import Corpus, read_bank, read_shards, read_vocabulary
    from pretrain.planning.speed import Cluster
    from pretrain.settings import load_config

    chosen = load_config(PretrainConfig, config, overrides or [])
    shards = read_shards(chosen)
    cluster = Cluster(
        nodes=nodes,
        gpus=gpus,
        **_each(gpu, chosen.engine.precision, peak_tflops, memory, link),
        mfu=mfu,
        network=network * 1e9,
        disk=disk * 1e9,
        sample=shards.bytes_per_sample if shards else sample_kb * 1e3,
    )
    check_split(chosen, cluster.world)
    corpus = Corpus(read_vocabulary(chosen, vocabulary), read_bank(chosen, bank), shards.count if shards else None)
    found = make_plan(chosen, corpus, cluster)
    sizes = list(at_sizes(chosen, corpus, cluster, WORLDS)) if scaling else []
    if as_json:
        typer.echo(json.dumps(found.as_json() | {"scaling": [one.as_json() for _, one in sizes]}))
    else:
        _show(chosen, corpus, cluster, found, sizes)


def _each(
    gpu: str, precision: str, peak_tflops: float | None, memory: float | None, link: float | None
) -> dict[str, float]:
    """What a `Cluster` needs to know of each GPU: its kind's figures, or those given in their place.

    Raises:
        UserError: a kind that is not known.
    """
    from pretrain.devices import GPUS

    if gpu not in GPUS:
        raise UserError(
            f"`--gpu` (={gpu}) is not known{nearest(gpu, list(GPUS))}; --peak-tflops and --memory describe one"
        )
    kind, given = GPUS[gpu], peak_tflops and peak_tflops * 1e12
    full = precision == "fp32"
    return {
        "flops": given or (kind.flops_fp32 if full else kind.flops),
        "flops_bf16": kind.flops if full else given or kind.flops,
        "memory": memory * 1e9 if memory else kind.memory,
        "bandwidth": kind.bandwidth,
        "link": link * 1e9 if link else kind.link,
    }


def _show(
    config: "PretrainConfig", corpus: "Corpus", cluster: "Cluster", found: "Plan", sizes: "list[tuple[int, Plan]]"
) -> None:
    """Tables, and what to change."""
    from rich.console import Console

    from pretrain.planning import table
    from pretrain.planning.plan import advice

    console = Console()
    console.print(table.memory_table(found), table.speed_table(found, cluster))
    if sizes:
        console.print(table.scaling_table(sizes))
    if (
        config.objectives.itm
        and config.objectives.itm.pool == "global"
        and _gathers(cluster, [found, *dict(sizes).values()])
    ):
        typer.echo("objectives.itm.pool=local would end the gathering of tokens, which costs the most on many GPUs")
    if not found.fits:
        _warn(found.memory.peak, cluster.memory, advice(config, corpus, cluster))
    elif config.engine.precision == "fp32":
        typer.echo("engine.precision=bf16 would use the GPU's faster units and keep smaller activations")


def _gathers(cluster: "Cluster", plans: "list[Plan]") -> bool:
    """Whether features of other ranks take a large part of a step, at any size."""
    return any(plan.sent.get("features gathered", 0) / cluster.ring > GATHERING * plan.step for plan in plans)


def _warn(peak: int, available: float, way: tuple[list[str], int] | None) -> None:
    told = f"warning: {peak / 1e9:.3g} GB do not fit into {available / 1e9:.3g} GB"
    if way:
        settings, then = way
        typer.echo(f"{told}; {' '.join(settings)} would need {then / 1e9:.3g} GB")
    else:
        typer.echo(f"{told}, whatever is saved; take a smaller data.global_batch or more GPUs")
