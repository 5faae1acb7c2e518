"""A file of another known form is refused with the name of the form and of the command that reads it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.sources.albef import AlbefSource
from shards.sources.annotation_files import FORMS
from shards.sources.base import Source
from shards.sources.coco import CocoSource
from shards.sources.conceptual_captions import ConceptualCaptionsSource
from shards.sources.flickr30k import Flickr30kSource

FILES = {
    "karpathy": '{"images": [{"filename": "a.jpg", "split": "train", "sentences": []}]}',
    "coco": '{"images": [], "annotations": []}',
    "albef": '[{"image": "a.jpg", "caption": "a"}]',
    "flickr30k": "a.jpg#0\ta\n",
    "conceptual-captions": "a\thttp://x/a.jpg\n",
    "folder": "image,caption\na.jpg,a\n",
}
READERS: dict[str, Callable[[Path, Path], Source]] = {
    "coco": CocoSource,
    "albef": AlbefSource,
    "flickr30k": Flickr30kSource,
    "conceptual-captions": partial(ConceptualCaptionsSource, url_map=Path("none.tsv")),
}
REAL = {
    "karpathy": "coco_test5k_karpathy_format.json",
    "coco": "coco_test5k_official_format.json",
    "albef": "coco_test_albef_format.json",
    "conceptual-captions": "cc3m_validation.tsv",
}


def refusal(reader: str, path: Path, images: Path) -> str:
    with pytest.raises(UserError) as error:
        READERS[reader](path, images)
    return str(error.value)


@pytest.mark.parametrize(("reader", "form"), [(r, f) for r in READERS for f in FILES if r != f])
def test_other_forms_are_named(reader: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / ("t.csv" if form == "folder" else "file")
    path.write_text(FILES[form])
    state = f"`annotations` (={path}) looks like {FORMS[form]}, which `shards build {form}` reads; this needs "
    assert refusal(reader, path, tmp_path).startswith(state + FORMS[reader] + ": ")


@pytest.mark.parametrize(("reader", "form"), [(r, f) for r in READERS for f in REAL if r != f])
def test_real_files_of_other_forms(reader: str, form: str, test_data: Path, tmp_path: Path) -> None:
    message = refusal(reader, test_data / "annotations" / REAL[form], tmp_path)
    assert f"looks like {FORMS[form]}, which `shards build {form}` reads" in message


@pytest.mark.parametrize("reader", READERS)
def test_unknown_forms_and_missing_files(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("", "plain words\n", '{"x": 1}', "[]"):
        path.write_text(content)
        message = refusal(reader, path, tmp_path)
        assert "has an unknown form; this needs" in message or "is not JSON: " in message
    assert refusal(reader, tmp_path / "none", tmp_path) == f"`annotations` (={tmp_path}/none) must be a file"
    assert refusal(reader, path, tmp_path / "none") == f"`images` (={tmp_path}/none) must be a folder"
