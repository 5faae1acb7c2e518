"""SBU: both published forms give the same corpus, on the same join as Conceptual Captions."""

import json
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.sources.sbu import SbuSource

URLS = ["http://x/a", "http://x/b", "http://x/gone", "http://y/a"]
CAPTIONS = ["a ", "b", "gone", "same as a"]
MAP = "http://x/a\t0.png\nhttp://x/b\tmore/1.png\nhttp://y/a\t0.png\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    (tmp_path / "all.json").write_text(json.dumps({"image_urls": URLS, "captions": CAPTIONS, "user_ids": ["u"] * 4}))
    (tmp_path / "dataset_urls.txt").write_text("\n".join(URLS) + "\n")
    (tmp_path / "dataset_captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    (tmp_path / "map.tsv").write_text(MAP)
    return tmp_path / "all.json", tmp_path / "dataset_urls.txt", tmp_path / "map.tsv"


def test_both_forms_agree(files: tuple[Path, Path, Path], image_files: Path) -> None:
    one, other, url_map = files
    source = SbuSource(one, image_files, url_map)
    assert [source[i].captions for i in range(len(source))] == [("a", "same as a"), ("b",)]
    assert source[1].metadata == {"url": "http://x/b", "file": "more/1.png"}
    assert source.skipped == 1
    assert SbuSource(other, image_files, url_map).fingerprint() == source.fingerprint()


def test_faults_are_named(files: tuple[Path, Path, Path], image_files: Path, tmp_path: Path) -> None:
    one, other, url_map = files
    (tmp_path / "dataset_captions.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="must have a caption for each of 4 addresses"):
        SbuSource(other, image_files, url_map)
    (tmp_path / "dataset_captions.txt").unlink()
    with pytest.raises(UserError, match="needs the captions beside it"):
        SbuSource(other, image_files, url_map)
    one.write_text('{"image_urls": ["a"], "captions": [1]}')
    with pytest.raises(UserError, match="has an unknown form; this needs JSON"):
        SbuSource(one, image_files, url_map)
