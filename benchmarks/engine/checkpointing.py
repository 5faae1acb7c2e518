"""What a checkpoint costs the training beside it: in the background, and waited for.

    python benchmarks/engine/checkpointing.py [--rounds 5] [--steps 10] [--every 100] [key=value ...]

A round is three windows of the same number of steps in one process, in turn: without a checkpoint, with one that is
written in the background, and with one that is waited for. What a window with a checkpoint takes longer than the one
without, over the time of `--every` steps, is the share that checkpointing so often adds. A background write that is
not done with the window's last step is waited for within the window.
"""

import argparse
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from pretrain.config import PretrainConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.engine import Engine, start_process_group
from pretrain.rehearsal import largest
from pretrain.saving import Saver
from pretrain.settings import load_config
from pretrain.task import Task
from pretrain.train import check, open_stream
from shards.sources.scenes import ScenesSource
from shards.tokenizer import write_tokenizer
from shards.write import build_shards

ROOT = Path(__file__).parents[2]
KINDS = ("none", "background", "waited for")


class Trainer:
    """The engine on one batch, again and again: every step costs the same."""

    def __init__(self, config: PretrainConfig) -> None:
        inputs = check(config)
        self.device = start_process_group()
        torch.manual_seed(0)
        task = Task(config.model, config.objectives, len(inputs.tokenizer))
        self.parameters = sum(parameter.numel() for parameter in task.parameters())
        self.engine = Engine(task.to(self.device).train(), config)
        batch = next(open_stream(config, inputs, workers=0).batches(1))
        self.batch, self.lr = largest(batch, config).to(self.device), config.optim.lr
        self.saver, self.steps = Saver(config, Tokenizer(config.data.tokenizer)), 0

    def window(self, kind: str, steps: int) -> float:
        """Seconds of so many steps, with a checkpoint of this kind before the first."""
        before = time.perf_counter()
        if kind != "none":
            self.saver.start(self.steps, self.engine, {}, [])
        if kind == "waited for":
            self.saver.finish()
        for _ in range(steps):
            self.saver.heed(self.engine.step(self.batch, self.lr, votes=self.saver.votes()).votes)
            self.steps += 1
        self.saver.finish()
        return time.perf_counter() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("overrides", nargs="*")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        shards, tokenizer = Path(place, "shards"), Path(place, "tokenizer.json")
        build_shards(ScenesSource(512, seed=0, split="train", size=64), shards)
        write_tokenizer(shards, tokenizer, vocab_size=300)
        settings = [f"data.shards={shards}", f"data.tokenizer={tokenizer}", f"run.out={place}/run", "run.keep_last=1"]
        config = load_config(PretrainConfig, ROOT / "configs/pretrain/demo.yaml", [*settings, *chosen.overrides])
        trainer = Trainer(config)
        print(
            f"torch {version('torch')}, deepspeed {version('deepspeed')}, {torch.get_num_threads()} threads, "
            f"{trainer.parameters / 1e6:.1f} million parameters"
        )
        trainer.window("background", chosen.steps)  # the first moments and pages are not counted
        added: dict[str, list[float]] = {kind: [] for kind in KINDS[1:]}
        for number in range(chosen.rounds):
            seconds = {kind: trainer.window(kind, chosen.steps) for kind in KINDS[number % 3 :] + KINDS[: number % 3]}
            step = seconds["none"] / chosen.steps
            for kind, shares in added.items():
                shares.append((seconds[kind] - seconds["none"]) / (chosen.every * step))
            print(
                f"step {step * 1e3:7.1f} ms   "
                + "   ".join(f"{kind} {seconds[kind] - seconds['none']:6.3f} s" for kind in added)
            )
    for kind, shares in added.items():
        print(
            f"one checkpoint per {chosen.every} steps, {kind}, adds {statistics.median(shares):.2%} "
            f"(median; {min(shares):.2%} to {max(shares):.2%})"
        )


if __name__ == "__main__":
    main()
