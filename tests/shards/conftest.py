"""Small corpora with known contents."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.sample import Identity, Sample
from shards.write import build_shards

MakeSource = Callable[..., "ListSource"]


class ListSource:
    """Samples held in a list."""

    name = "list"

    def __init__(self, samples: list[Sample], fingerprint: str = "f" * 64) -> None:
        self.samples = samples
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def identity(self, index: int) -> Identity:
        return Identity("list", index)

    def fingerprint(self) -> str:
        return self._fingerprint


def png(index: int, width: int = 6, height: int = 4) -> bytes:
    """A one-colour image that tells its index."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), index % 256, dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def make_source() -> MakeSource:
    def make(count: int) -> ListSource:
        return ListSource(
            [
                Sample(
                    f"key-{i:04d}", png(i), "png", tuple(f"text {i} {j}" for j in range(1 + i % 3)), metadata={"n": i}
                )
                for i in range(count)
            ]
        )

    return make


@pytest.fixture
def shard_folder(tmp_path: Path, make_source: MakeSource) -> Path:
    """50 samples in shards of 8: six full ones and one of two."""
    build_shards(make_source(50), tmp_path / "set", samples_per_shard=8)
    return tmp_path / "set"


@pytest.fixture
def karpathy_files(tmp_path: Path) -> tuple[Path, Path]:
    """An annotation file and an image folder: two styles with equal file names, ragged captions, three splits."""
    images = tmp_path / "images"
    entries = []
    for i, split in enumerate(["train"] * 4 + ["restval"] * 2 + ["test"]):
        folder, name = f"style{i % 2}", f"{i // 2}.png"
        (images / folder).mkdir(parents=True, exist_ok=True)
        (images / folder / name).write_bytes(png(i))
        sentences = [{"raw": f" Text {i} {j}. ", "tokens": ["text"], "sentid": 10 * i + j} for j in range(1 + i % 3)]
        ids = [sentence["sentid"] for sentence in sentences]
        entries.append(
            {"filepath": folder, "filename": name, "split": split, "cocoid": 100 + i, "concept": f"c{i // 2}"}
            | {"sentences": sentences, "sentids": ids}
        )
    annotations = tmp_path / "dataset.json"
    annotations.write_text(json.dumps({"images": entries, "dataset": "tiny"}))
    return annotations, images


@pytest.fixture
def image_files(tmp_path: Path) -> Path:
    """A folder of images for annotations to name: `0.png`, `1.png` and, below `more`, another `1.png`."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    for i, name in enumerate(("0.png", "1.png", "more/1.png")):
        (images / name).write_bytes(png(i))
    return images
