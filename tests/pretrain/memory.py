"""Not a test: takes three steps of each case and tells the most that the tensors of one rank held at a time.

python -m tests.pretrain.memory measure CASE-ZERO ...           as one process or as the ranks of a group
python -m tests.pretrain.memory plan WORLD CASE-ZERO ...        what `pretrain plan` reckons for the same
The last line on stdout is one JSON object: CASE-ZERO -> bytes held at the peak, and bytes that one step hands to each
kind of collective.
"""

import gc
import json
import sys
import time
import weakref
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
from pretrain.optim import freeze
from pretrain.planning.batch import largest_batch
from pretrain.planning.memory import memory
from pretrain.planning.sources import Corpus
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
MUON = merge(
    DUAL,
    {
        "model": {"vision": {"options": {"embed_dim": 384}}},
        "data": {"global_batch": 2, "max_tokens": 8},
        "optim": {"name": "muon", "by_adamw": ["model.image_projection."]},
    },
)
BANK = merge(DUAL, {"objectives": {"itc": None, "bank": {"soft": 0.1}}, "optim": {"freeze": ["model.text."]}})
ALLOCATION = torch._C._profiler._EventType.Allocation
CASES: dict[str, dict[str, Any]] = {"albef": ALBEF, "uniter": UNITER, "dual": DUAL, "muon": MUON, "bank": BANK}
CELLS = [f"{case}-{zero}" for case in ("albef", "uniter", "dual") for zero in range(4)] + ["muon-0", "bank-0", "bank-2"]
CORPUS = Corpus(VOCABULARY, bank=(3000, 700))


def configuration(case: str, zero: str) -> PretrainConfig:
    return parse_config(PretrainConfig, merge(CASES[case], {"engine": {"zero": int(zero)}}))


class Handed(TorchDispatchMode):
    """Adds up what this rank hands to collectives, and notes when each tensor's memory is released.

    The last to let go of it may be a thread of gloo's, which the profiler does not follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.released: list[tuple[int, int, int]] = []
        """Address, and the moments (ns since 1970) at which it was handed over and released."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._overloadpacket.__name__.strip("_")
            inputs = args[0] if name == "allreduce" else args[1]
            self.bytes[name] += sum(x.nbytes for x in tree_leaves(inputs) if isinstance(x, Tensor))
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    weakref.finalize(storage, self.release, storage.data_ptr(), time.time_ns()).atexit = False
        return func(*args, **(kwargs or {}))

    def release(self, where: int, handed: int) -> None:
        self.released.append((where, handed, time.time_ns()))


def measured(config: PretrainConfig) -> dict[str, Any]:
    """Without Python's collector: what it releases inside the profile is not in the profiler's record."""
    gc.collect()
    gc.disable()
    batch = largest_batch(config, config.data.global_batch // distributed.world())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, Handed() as handed:
        torch.manual_seed(0)
        engine = Engine(ready(config), config)
        batch = batch.each(lambda x: x.clone())
        for _ in range(3):
            handed.bytes.clear()
            engine.step(batch, lr=1e-3)
    gc.enable()
    return {"peak": most_held(profiler, handed.released), "handed": dict(handed.bytes)}


def ready(config: PretrainConfig) -> Task:
    """With its bank filled, as a run's."""
    task = Task(config.model, config.objectives, VOCABULARY)
    freeze(task, config.optim.freeze)
    if "bank" in task.objectives:
        texts, groups = CORPUS.bank
        task.objectives["bank"].fill(torch.randn(texts, task.model.text.width), torch.arange(texts) % groups)
    return task


def most_held(profiler: Any, released: list[tuple[int, int, int]]) -> int:
    """Every allocation of the allocator and its release, in their order; releases of what was there before are not."""
    moves = [
        (event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size, 0)
        for event in tree(profiler)
        if event.tag == ALLOCATION
    ]
    moves += [(end, where, 0, handed) for where, handed, end in released]
    live: dict[int, tuple[int, int]] = {}
    held = most = 0
    for moment, where, size, handed in sorted(moves):
        if handed and live.get(where, (moment, 0))[0] > handed:
            continue  # the profiler saw the release, and the address has been given out again
        held -= live.pop(where, (0, 0))[1]
        if size > 0:
            live[where] = (moment, size)
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
    step, share = imagine(config, CORPUS, world, on="cpu"), (world - 1) / world
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


def each(cells: list[str], find: Callable[[PretrainConfig], dict[str, Any]]) -> None:
    found = {cell: find(configuration(*cell.split("-"))) for cell in cells}
    if distributed.rank() == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        start_process_group()
        each(sys.argv[2:], measured)
    else:
        each(sys.argv[3:], lambda config: planned(config, int(sys.argv[2])))
