"""Whether `engine.compile` pays: the same step of the same model, compiled and not, in turn in one process.

    python benchmarks/engine/compiling.py [--rounds 5] [--steps 5] [key=value ...]

Without settings it trains a small dual encoder on this machine. The time that compiling takes at the first step stands
apart, since it is paid once.
"""

import argparse
import statistics
import tempfile
import time
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


def seconds(engine: Engine, batch: Batch, steps: int) -> float:
    """Of one step, the mean of so many."""
    before = time.perf_counter()
    for _ in range(steps):
        engine.step(batch, lr=1e-4)
    return (time.perf_counter() - before) / steps


def built(config: PretrainConfig, vocabulary: int) -> Engine:
    torch.manual_seed(0)
    return Engine(Task(config.model, config.objectives, vocabulary).train(), config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        shards, tokenizer = Path(place, "shards"), Path(place, "tokenizer.json")
        build_shards(ScenesSource(256, seed=0, split="train", size=64), shards)
        write_tokenizer(shards, tokenizer, vocab_size=300)
        settings = [f"data.shards={shards}", f"data.tokenizer={tokenizer}", f"run.out={place}/run"]
        file, engines = ROOT / "configs/pretrain/demo.yaml", {}
        for compiled in (False, True):
            words = [*settings, *(chosen.overrides or DUAL), f"engine.compile={compiled}"]
            config = load_config(PretrainConfig, file, words)
            inputs = check(config)
            start_process_group()
            engines[compiled] = built(config, len(inputs.tokenizer))
            batch = largest(next(open_stream(config, inputs, workers=0).batches(1)), config)
            print(f"compile {compiled!s:5}: the first step takes {seconds(engines[compiled], batch, 1):.1f} s")
        print(f"torch {version('torch')}, deepspeed {version('deepspeed')}, {torch.get_num_threads()} threads")
        ratios = []
        for number in range(chosen.rounds + 1):
            taken = {
                kind: seconds(engines[kind], batch, chosen.steps) for kind in (False, True)[:: 1 - 2 * (number % 2)]
            }
            if number:  # the first round warms up
                ratios.append(taken[False] / taken[True])
                print(f"plain {taken[False] * 1e3:7.1f} ms   compiled {taken[True] * 1e3:7.1f} ms")
    print(f"compiled is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
