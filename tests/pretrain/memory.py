"""Not a test: takes three steps of each case and tells the most that the tensors of one rank held at a time.

python -m tests.pretrain.memory measure ZERO ...           as one process or as the ranks of a group
python -m tests.pretrain.memory plan WORLD ZERO ...        what `pretrain plan` reckons for the same
The last line on stdout is one JSON object: case-zero -> bytes held at the peak, and bytes that one step hands to each
kind of collective.
"""

import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain import distributed
from pretrain.config import PretrainConfig
from pretrain.engine import Engine, start_process_group
from pretrain.planning.batch import largest_batch
from pretrain.planning.memory import memory
from pretrain.planning.speed import sent
from pretrain.planning.step import imagine
from pretrain.settings import merge, parse_config
from pretrain.task import Task
from tests.pretrain.tiny import VOCABULARY, tiny_config, tiny_joint

BUCKETS = {"zero_optimization": {"reduce_bucket_size": 200_000, "allgather_bucket_size": 200_000}}
TEXT = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 768}
VISION = {"name": "vit_tiny_patch16_224", "options": {"patch_size": 16, "embed_dim": 192, "depth": 2, "num_heads": 4}}
ALBEF = merge(
    tiny_config().model_dump(),
    {
        "model": {"image_size": 96, "vision": VISION, "text": {"options": TEXT}, "fusion": {"depth": 2, "heads": 4}},
        "data": {"global_batch": 16, "max_tokens": 24},
        "engine": {"deepspeed": BUCKETS},
    },
)
UNITER = merge(
    tiny_joint({"mlm": {}, "mrf": {}, "itm": {"negatives": "swap"}, "wra": {}}).model_dump(),
    {
        "model": {
            "vision": {"region": {"width": 192}},
            "text": {"options": TEXT | {"num_hidden_layers": 0}},
            "fusion": {"depth": 4, "heads": 4},
        },
        "data": {"global_batch": 16, "max_tokens": 24, "regions": {"most": 20}},
        "engine": {"deepspeed": BUCKETS},
    },
)
DUAL = merge(ALBEF, {"model": {"fusion": {"trunk": "none"}}, "objectives": {"itm": None, "mlm": None}})
ALLOCATION = torch._C._profiler._EventType.Allocation
CASES: dict[str, dict[str, Any]] = {"albef": ALBEF, "uniter": UNITER, "dual": DUAL}


def configuration(case: str, zero: int, **changes: Any) -> PretrainConfig:
    return parse_config(PretrainConfig, merge(merge(CASES[case], {"engine": {"zero": zero}}), changes))


class Handed(TorchDispatchMode):
    """Adds up what this rank hands to collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._overloadpacket.__name__.strip("_")
            inputs = args[0] if name == "allreduce" else args[1]
            self.bytes[name] += sum(x.nbytes for x in tree_leaves(inputs) if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


def measured(config: PretrainConfig) -> dict[str, Any]:
    """Without Python's collector: what it releases inside the profile is not in the profiler's record."""
    gc.collect()
    gc.disable()
    batch = largest_batch(config, config.data.global_batch // distributed.world())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.manual_seed(0)
        engine = Engine(Task(config.model, config.objectives, VOCABULARY), config)
        batch = batch.each(lambda x: x.clone())
        for _ in range(2):
            engine.step(batch, lr=1e-3)
        with Handed() as handed:
            engine.step(batch, lr=1e-3)
    gc.enable()
    return {"peak": most_held(profiler), "handed": dict(handed.bytes)}


def most_held(profiler: Any) -> int:
    """Every allocation of the allocator and its release, in their order; releases of what was there before are not."""
    moves = [(time, event) for event in tree(profiler) for time in [event.start_time_ns] if event.tag == ALLOCATION]
    live: dict[int, int] = {}
    held = most = 0
    for _, event in sorted(moves, key=lambda move: move[0]):
        where, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        # An address that comes again was released unseen: by a thread of gloo's, which the profiler does not follow.
        held -= live.pop(where, 0)
        if size > 0:
            live[where] = size
            held += size
        most = max(most, held)
    return most


def tree(profiler: Any) -> Iterator[Any]:
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        yield event


def planned(config: PretrainConfig, world: int) -> dict[str, Any]:
    """The same figures without taking a step; what each collective is handed follows from what a ring sends."""
    step, share = imagine(config, VOCABULARY, world, on="cpu"), (world - 1) / world
    peak = memory(config, step, world, on="cpu").peak
    if world == 1:
        return {"peak": peak, "handed": {}}
    ring, handed = sent(config, step, world), Counter(step.trace.sent)
    if config.engine.zero == 3:
        handed["reduce_scatter_base"] += round(ring["gradients"] / share)
        handed["allgather_base"] += round(ring["weights fetched"] / share / world)
    else:
        handed["allreduce"] += round(ring["gradients"] / share / 2)
        handed["allgather_base"] += round(ring.get("new weights", 0) / share / world)
    return {"peak": peak, "handed": dict(handed)}


def each(stages: list[str], find: Callable[[PretrainConfig], dict[str, Any]]) -> None:
    found = {f"{case}-{zero}": find(configuration(case, int(zero))) for case in CASES for zero in stages}
    if distributed.rank() == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        start_process_group()
        each(sys.argv[2:], measured)
    else:
        each(sys.argv[3:], lambda config: planned(config, int(sys.argv[2])))
