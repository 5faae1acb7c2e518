"""Whether `engine.compile` pays: the same step of the same model, compiled and not, in turn in one process.

    python benchmarks/engine/compiling.py [--rounds 5] [--steps 5] [key=value ...]

Without settings it trains a small dual encoder on this machine. The time that compiling takes at the first step stands
apart, since it is paid once: beside the gain of a step it tells after how many steps compiling pays. Both take the same
steps, so their losses are compared too; dropout, which compiled code draws from other numbers, must be off for that.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.engine import Engine, start_process_group
from pretrain.rehearsal import largest
from pretrain.settings import load_config
from pretrain.task import Task
from pretrain.train import check, open_stream
from shards.sources.scenes import ScenesSource
from shards.tokenizer import write_tokenizer
from shards.write import build_shards

ROOT = Path(__file__).parents[2]
DUAL = (
    "model.fusion.trunk=none",
    "objectives={itc: {}, itm: null, mlm: null}",
    "model.vision={name: vit_tiny_patch16_224, options: {patch_size: 8, depth: 6}}",
    "data.global_batch=32",
)


@dataclass
class Course:
    """The same steps of one engine, one after the other."""

    engine: Engine
    losses: list[float] = field(default_factory=list)

    def seconds(self, batch: Batch, steps: int) -> float:
        """Of one step, the mean of so many."""
        before = time.perf_counter()
        for _ in range(steps):
            self.losses.append(self.engine.step(batch, lr=1e-4).losses["loss"])
        return (time.perf_counter() - before) / steps


def built(config: PretrainConfig, vocabulary: int) -> Course:
    torch.manual_seed(0)
    return Course(Engine(Task(config.model, config.objectives, vocabulary).train(), config))


def compared(courses: dict[bool, Course], batch: Batch, rounds: int, steps: int) -> list[tuple[float, float]]:
    """Seconds of a step, plain and compiled, of each round; the first round warms up and is left out."""
    found = []
    for number in range(rounds + 1):
        order = (False, True)[:: 1 - 2 * (number % 2)]
        taken = {kind: courses[kind].seconds(batch, steps) for kind in order}
        if number:
            found.append((taken[False], taken[True]))
            print(f"plain {taken[False] * 1e3:7.1f} ms   compiled {taken[True] * 1e3:7.1f} ms", flush=True)
    return found


def tell(rounds: list[tuple[float, float]], first: dict[bool, float], courses: dict[bool, Course]) -> None:
    ratios = [plain / compiled for plain, compiled in rounds]
    print(f"compiled is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
    gained = statistics.median(plain - compiled for plain, compiled in rounds)
    if gained > 0:
        print(f"compiling is earned back after {(first[True] - first[False]) / gained:,.0f} steps")
    pairs = list(zip(courses[False].losses, courses[True].losses, strict=True))
    worst = max(abs(plain - compiled) / abs(plain) for plain, compiled in pairs)
    print(
        f"losses of {len(pairs)} steps differ by at most {worst:.1e} (relative), the first by "
        f"{abs(pairs[0][0] - pairs[0][1]) / abs(pairs[0][0]):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = place  # nothing that was compiled before
        shards, tokenizer = Path(place, "shards"), Path(place, "tokenizer.json")
        build_shards(ScenesSource(256, seed=0, split="train", size=64), shards)
        write_tokenizer(shards, tokenizer, vocab_size=300)
        settings = [f"data.shards={shards}", f"data.tokenizer={tokenizer}", f"run.out={place}/run"]
        file, courses, first = ROOT / "configs/pretrain/demo.yaml", {}, {}
        for compiled in (False, True):
            words = [*settings, *(chosen.overrides or DUAL), f"engine.compile={compiled}"]
            config = load_config(PretrainConfig, file, words)
            inputs = check(config)
            start_process_group()
            courses[compiled] = built(config, len(inputs.tokenizer))
            batch = largest(next(open_stream(config, inputs, workers=0).batches(1)), config)
            first[compiled] = courses[compiled].seconds(batch, 1)
            print(f"compile {compiled!s:5}: the first step takes {first[compiled]:.1f} s", flush=True)
        print(f"torch {version('torch')}, deepspeed {version('deepspeed')}, {torch.get_num_threads()} threads")
        tell(compared(courses, batch, chosen.rounds, chosen.steps), first, courses)


if __name__ == "__main__":
    main()
