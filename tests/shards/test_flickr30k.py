"""Flickr30K token files: lines to one sample per image."""

from pathlib import Path

import pytest

from shards.errors import UserError
from shards.sources.flickr30k import Flickr30kSource


def make(folder: Path, images: Path, text: str) -> Flickr30kSource:
    (folder / "results.token").write_bytes(text.encode())
    return Flickr30kSource(folder / "results.token", images)


def test_captions_of_an_image_are_one_sample(image_files: Path, tmp_path: Path) -> None:
    """A line separator inside a caption (U+2028) does not end the line, and a byte order mark is no part of a name."""
    text = "\ufeff1.png#0\tA dog .\r\n1.png#1\tTwo\u2028dogs #2 .\r\n\r\n0.png#0\tA\tcat ."
    source = make(tmp_path, image_files, text)
    assert [source[i].captions for i in range(len(source))] == [("A dog .", "Two\u2028dogs #2 ."), ("A\tcat .",)]
    assert source[0].metadata == {"file": "1.png"}
    assert source[0].image == (image_files / "1.png").read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.png\tA dog .", "has a line (2) of another form; this needs a Flickr30K token file: lines of NAME.jpg#NUM"),
        ("0.png#0\tA dog .", "must give 0.png#0 once, but line 2 does again"),
        ("1.png#0\t ", "image `1.png` must have at least one caption"),
        ("2.png#0\tA dog .", "lacks 1 of 2 images, the first is 2.png"),
    ],
)
def test_faults_are_named(line: str, message: str, image_files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path, image_files, f"0.png#0\tA cat .\n{line}\n")
    assert message in str(error.value)
