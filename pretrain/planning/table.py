"""A plan for people."""

from collections.abc import Iterable

from rich.table import Table

from pretrain.planning.plan import Plan
from pretrain.planning.speed import Cluster


def memory_table(plan: Plan) -> Table:
    """The parts of a GPU's memory, the largest first, and what they come to at each moment."""
    table = Table(title="memory of a GPU", title_justify="left")
    table.add_column("part")
    table.add_column("GB", justify="right")
    for part, size in sorted(plan.memory.parts.items(), key=lambda item: -item[1]):
        if size:
            table.add_row(part, gigabytes(size))
    table.add_section()
    for moment, size in plan.memory.moments.items():
        table.add_row(f"together: {moment}", gigabytes(size))
    for part, size in plan.memory.host.items():
        table.add_row(f"on the host: {part}", gigabytes(size))
    return table


def speed_table(plan: Plan, cluster: Cluster) -> Table:
    table = Table(title=f"{cluster.nodes} x {cluster.gpus} GPUs, {plan.pairs} pairs each", title_justify="left")
    table.add_column("of a step")
    table.add_column("", justify="right")
    rows = {
        "time": f"{plan.step:.3f} s",
        f"products at {cluster.mfu:.0%} of the peak": f"{plan.products:.3f} s",
        "messages that nothing hides": f"{plan.messages:.3f} s",
        "optimizer": f"{plan.optimizer:.3f} s",
        "decoding": f"{plan.data:.3f} s",
        **{f"sent: {name}": f"{gigabytes(size)} GB" for name, size in plan.sent.items()},
        "samples/s": f"{plan.samples_per_second:,.0f}",
        "MFU": f"{plan.mfu:.1%}",
        "read from shards": f"{plan.reading / 1e6:,.0f} MB/s",
        "shards per rank": "not known" if plan.shards_per_rank is None else f"{plan.shards_per_rank:,.1f}",
        "checkpoint": f"{gigabytes(plan.checkpoint_bytes)} GB in {plan.checkpoint:.0f} s",
        "a checkpoint holds up training": f"{plan.stalled:.1f} s",
        f"{plan.steps:,} steps": f"{plan.days:,.2f} days, {plan.gpu_hours:,.0f} GPU-hours",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def scaling_table(plans: Iterable[tuple[int, Plan]]) -> Table:
    """The same work on more GPUs; efficiency is samples/s of a GPU beside the first row's."""
    table = Table(title="as many pairs on each GPU, as many samples in all", title_justify="left")
    for name in ("GPUs", "batch", "step s", "samples /s", "effi- ciency", "sent GB", "memory GB", "days", "GPU hours"):
        table.add_column(name, justify="right")
    first = None
    for world, plan in plans:
        each = plan.samples_per_second / world
        first = first or each
        table.add_row(
            str(world),
            f"{plan.pairs * world:,}",
            f"{plan.step:.3f}",
            f"{plan.samples_per_second:,.0f}",
            f"{each / first:.0%}",
            gigabytes(sum(plan.sent.values())),
            gigabytes(plan.memory.peak),
            f"{plan.days:.2f}",
            f"{plan.gpu_hours:,.0f}",
        )
    return table


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f}"
