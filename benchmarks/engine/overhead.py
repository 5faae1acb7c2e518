"""What the training loop adds to the bare forward, backward and step of the same model, step by step in one process.

    python benchmarks/engine/overhead.py [--rounds 5] [--steps 14] [--workers 0] [--clock cpu] [key=value ...]

A round trains the demo's model on generated scenes through `pretrain.train.fit` (stream, decoding, DeepSpeed, checks,
metrics). At each of its steps the same batch goes through plain torch too: forward, backward, clipping, AdamW; before
the engine's step and after it in turn, since a worker that prepares the next batch slows down whatever comes first. The
loop is timed from the start of one step to the start of the next, less the plain step between. Without workers reading
and decoding take the core that the model computes on, in place of running beside it, so the engine's share is told
apart; give a worker a core of its own with OMP_NUM_THREADS. On a machine that others use too, `--clock cpu` counts the
processor time of this process in place of the wall's.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

import pretrain.train
from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.engine import Engine
from pretrain.optim import build_optimizer, set_lr
from pretrain.settings import load_config
from pretrain.stepped import Stepped
from pretrain.task import Task
from pretrain.train import fit
from shards.sources.scenes import ScenesSource
from shards.tokenizer import write_tokenizer
from shards.write import build_shards

ROOT = Path(__file__).parents[2]
WARM = 3  # first steps of a round, left out
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Bare:
    """The same steps in plain torch."""

    def __init__(self, config: PretrainConfig, vocabulary: int) -> None:
        self.task = Task(config.model, config.objectives, vocabulary).train()
        self.config = config.optim
        self.optimizer = build_optimizer(self.task, config.optim)

    def step(self, batch: Batch, lr: float) -> None:
        self.task(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.config.clip)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Timed(Engine):
    """Takes each step twice, once plainly; keeps when it began, and seconds of the engine and of plain torch."""

    times: list[tuple[float, float, float]]
    clock: Callable[[], float]

    def __init__(self, task: Task, config: PretrainConfig) -> None:
        self.bare = Bare(config, task.model.shape.vocabulary)
        Timed.times = []
        super().__init__(task, config)

    def step(self, batch: Batch, lr: float, *arguments: object, **options: object) -> Stepped:
        start = Timed.clock()
        plain = self._plainly(batch, lr) if len(Timed.times) % 2 else 0.0
        before = Timed.clock()
        stepped = super().step(batch, lr, *arguments, **options)  # type: ignore[arg-type]
        engine = Timed.clock() - before
        Timed.times.append((start, engine, plain or self._plainly(batch, lr)))
        return stepped

    def _plainly(self, batch: Batch, lr: float) -> float:
        before = Timed.clock()
        self.bare.step(batch, lr)
        return Timed.clock() - before


def measured(config: PretrainConfig) -> tuple[float, float, float]:
    """Mean seconds of a step of the loop, of the engine and of plain torch."""
    fit(config)
    steps = list(zip(Timed.times[WARM:], Timed.times[WARM + 1 :], strict=False))
    loop = [following - start - plain for (start, _, plain), (following, *_) in steps]
    return (
        statistics.mean(loop),
        statistics.mean(engine for (_, engine, _), _ in steps),
        statistics.mean(plain for (*_, plain), _ in steps),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args()
    Timed.clock = staticmethod(CLOCKS[chosen.clock])
    pretrain.train.Engine = Timed  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as place:
        shards, tokenizer = Path(place, "shards"), Path(place, "tokenizer.json")
        build_shards(ScenesSource(1024, seed=0, split="train", size=64), shards, samples_per_shard=256)
        write_tokenizer(shards, tokenizer, vocab_size=300)
        settings = [f"data.shards={shards}", f"data.tokenizer={tokenizer}", f"data.workers={chosen.workers}"]
        settings += [f"run.steps={chosen.steps}", *chosen.overrides]
        print(f"torch {version('torch')}, deepspeed {version('deepspeed')}, {torch.get_num_threads()} threads")
        added, engines = [], []
        for number in range(chosen.rounds):
            out = f"run.out={place}/{number}"
            config = load_config(PretrainConfig, ROOT / "configs/pretrain/demo.yaml", [*settings, out])
            loop, engine, plain = measured(config)
            added.append(loop / plain - 1)
            engines.append(engine / plain - 1)
            print(
                f"loop {loop * 1e3:7.1f} ms   engine {engine * 1e3:7.1f} ms   bare {plain * 1e3:7.1f} ms   "
                f"the loop adds {added[-1]:6.1%}, of which the engine {engines[-1]:6.1%}"
            )
    for name, shares in (("the loop", added), ("the engine", engines)):
        print(f"{name} adds {statistics.median(shares):.1%} (median; {min(shares):.1%} to {max(shares):.1%})")


if __name__ == "__main__":
    main()
