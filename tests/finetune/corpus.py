"""A small corpus with ragged and repeated captions, and an untrained checkpoint that can read it."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from pretrain.checkpoint import CONFIG, LATEST, STATE, WEIGHTS, Checkpoint
from pretrain.data.tokenizer import Tokenizer
from pretrain.settings import dump_config
from pretrain.task import Task
from shards.sample import Identity, Sample
from tests.pretrain.tiny import tiny_config

WORDS = ["a", "red", "blue", "green", "kite", "boat", "dog", "cat", "over", "under", "water", "sky", "two", "the"]


class Corpus:
    """A `Source` of random pictures, with one to seven captions each; some captions are shared between images."""

    name = "corpus"

    def __init__(self, images: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.samples = [self._sample(index, rng) for index in range(images)]

    def _sample(self, index, rng):
        target = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(target, "PNG")
        texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(rng.integers(1, 7))]
        if index in (1, 2):
            texts = ["two boat"]
        captions = (*texts, "the sky over the sky") if index % 5 == 0 else tuple(texts)
        return Sample(key=f"image-{index}", image=target.getvalue(), extension="png", captions=captions)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def identity(self, index):
        return Identity("corpus", index)

    def fingerprint(self):
        return "c0ffee" * 10


def tokenizer(folder: Path) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    backend = Backend(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def checkpoint(folder: Path, **changes: object) -> Checkpoint:
    """Random weights, large enough that scores differ."""
    torch.manual_seed(0)
    config, words = tiny_config(**changes), tokenizer(folder)
    task = Task(config.model, config.objectives, len(words)).eval()
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    path = folder / "tiny-run" / "checkpoints" / "step-00000007"
    return Checkpoint(path, config, task, words, {"step": 7, "files": {"model.safetensors": "ab" * 32}})


def write_corpus(folder: Path, train: int, test: int) -> Path:
    """The corpus on disk in Karpathy form: dataset.json and images/."""
    (folder / "images").mkdir()
    entries = []
    for index, sample in enumerate(Corpus(train + test).samples):
        (folder / "images" / f"{sample.key}.png").write_bytes(sample.image)
        sentences = [{"raw": caption} for caption in sample.captions]
        split = "train" if index < train else "test"
        entries.append({"filename": f"{sample.key}.png", "split": split, "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": entries}))
    return folder


def save(made: Checkpoint) -> Path:
    """Writes a checkpoint as a run leaves it; returns the run folder."""
    made.path.mkdir(parents=True)
    save_file(made.task.state_dict(), made.path / WEIGHTS)
    (made.path / CONFIG).write_text(dump_config(made.config))
    made.tokenizer.save(made.path)
    files = {
        name: hashlib.sha256((made.path / name).read_bytes()).hexdigest()
        for name in (WEIGHTS, CONFIG, "tokenizer.json")
    }
    (made.path / STATE).write_text(json.dumps({"step": 7, "world": 1, "stream": {}, "files": files}))
    (made.path.parent / LATEST).write_text(made.path.name)
    return made.path.parent.parent
