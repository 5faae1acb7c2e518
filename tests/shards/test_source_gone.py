"""Pictures that vanish while a build goes on: it stops with one sentence, and going on later loses nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.cli import app
from shards.console import run
from shards.errors import SourceGone
from shards.filters import Filters
from shards.sources.image_files import GONE
from shards.sources.karpathy import KarpathySource
from shards.write import build_shards

IMAGES = 40


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    """An annotation file and its folder of pictures."""
    images, annotations = tmp_path / "images", tmp_path / "dataset.json"
    images.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / f"{number}.png")
    entries = [
        {"filename": f"{number}.png", "split": "train", "sentences": [{"raw": f"picture {number}"}]}
        for number in range(IMAGES)
    ]
    annotations.write_text(json.dumps({"images": entries}))
    return annotations, images


class Leaving(KarpathySource):
    """Its folder is moved away before sample `at` is read, as a file system that is no longer mounted."""

    at = 0

    def __getitem__(self, index: int) -> Any:
        if index == self.at and self.images and self.images.exists():
            self.images.rename(self.images.with_name("away"))
        return super().__getitem__(index)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("filters", [None, Filters(min_words=1)], ids=["unfiltered", "filtered"])
@pytest.mark.parametrize("at", [0, 1, 17, 19, 39])
def test_a_folder_that_is_gone_stops_the_build_and_costs_nothing(
    corpus: tuple[Path, Path], tmp_path: Path, at: int, filters: Filters | None
) -> None:
    """17 and 19 lie at the end of a shard, whose last samples alone would be missing."""
    build_shards(KarpathySource(*corpus, "train"), tmp_path / "whole", samples_per_shard=10, filters=filters)
    leaving, out = Leaving(*corpus, "train"), tmp_path / "shards"
    leaving.at = at
    with pytest.raises(SourceGone, match=rf"can no longer be read: {at}\.png: No such file .* --resume goes on"):
        build_shards(leaving, out, samples_per_shard=10, filters=filters)
    assert "manifest.json" not in contents(out)
    assert len(list(out.glob("*.tar"))) == (0 if filters else at // 10)
    (tmp_path / "away").rename(corpus[1])
    build_shards(KarpathySource(*corpus, "train"), out, samples_per_shard=10, filters=filters, existing="resume")
    assert contents(out) == contents(tmp_path / "whole")


def damage(images: Path, numbers: range) -> None:
    """Folders in the place of files: there, and not to be read."""
    for number in numbers:
        (images / f"{number}.png").unlink()
        (images / f"{number}.png").mkdir()


def test_a_few_files_that_cannot_be_read_are_left_out(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    source = KarpathySource(*corpus, "train")
    damage(corpus[1], range(GONE - 1))
    damage(corpus[1], range(20, 20 + GONE - 1))
    manifest = build_shards(source, tmp_path / "shards", samples_per_shard=10)
    assert manifest.filtered is not None
    assert manifest.filtered.rejected == {"unreadable": 2 * (GONE - 1)}


def test_many_in_a_row_stop_the_build(corpus: tuple[Path, Path], tmp_path: Path) -> None:
    """A disk that fails may still show what it has in memory, so the last file that was read can be read again."""
    source = KarpathySource(*corpus, "train")
    damage(corpus[1], range(12, 12 + GONE))
    with pytest.raises(SourceGone, match=rf"can no longer be read: {11 + GONE}\.png: Is a directory"):
        build_shards(source, tmp_path / "shards", samples_per_shard=10)


def test_a_reader_that_builds_nothing_is_not_told_to_resume(corpus: tuple[Path, Path]) -> None:
    source = KarpathySource(*corpus, "train")
    corpus[1].rename(corpus[1].with_name("away"))
    with pytest.raises(SourceGone, match=r"can no longer be read: 3\.png: No such file or directory$"):
        source[3]


def test_the_command_says_so_in_one_line(
    corpus: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Leaving, "at", 25)
    monkeypatch.setattr("shards.sources.karpathy.KarpathySource", Leaving)
    words = ["karpathy", "--annotations", corpus[0], "--images", corpus[1], "--split", "train"]
    words += ["--out", tmp_path / "shards", "--samples-per-shard", 10]
    with pytest.raises(SystemExit) as ended:
        run(app, ["build", *map(str, words), "--workers", "2"])
    assert ended.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: `images` (={corpus[1]}) can no longer be read: ")
    assert error.endswith("; what is finished is kept, and --resume goes on")
    assert not (tmp_path / "shards" / "manifest.json").exists()
