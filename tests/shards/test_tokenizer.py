"""A WordPiece tokenizer that is a function of the texts alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.sources.scenes import ScenesSource
from shards.tokenizer import SPECIALS, train_tokenizer, write_tokenizer
from shards.write import build_shards

TEXTS = ["The red star", "a blue star above the red ring", "stars and rings, starry"] * 3


def test_specials_template_and_lower_case() -> None:
    tokenizer = train_tokenizer(TEXTS, 80)
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == [0, 1, 2, 3, 4]
    encoded = tokenizer.encode("The RED star", "blue")
    assert encoded.tokens == ["[CLS]", "the", "red", "star", "[SEP]", "blue", "[SEP]"]
    assert encoded.type_ids == [0, 0, 0, 0, 0, 1, 1]
    assert tokenizer.decode(encoded.ids) == "the red star blue"
    assert tokenizer.encode("stärs").tokens == ["[CLS]", "stars", "[SEP]"]
    assert "[UNK]" in tokenizer.encode("квадрат").tokens
    assert tokenizer.encode("##s").tokens[1:3] == ["[UNK]", "[UNK]"]


def test_ties_and_order_do_not_matter() -> None:
    trained = {train_tokenizer(texts, 70).to_str() for texts in (TEXTS, TEXTS[::-1], TEXTS, sorted(TEXTS))}
    assert len(trained) == 1


def test_two_processes_write_identical_files(tmp_path: Path) -> None:
    build_shards(ScenesSource(60, 0, "train"), tmp_path / "set")
    program = "import sys; from pathlib import Path; from shards.tokenizer import write_tokenizer as w"
    for name in ("a", "b"):
        call = f"{program}; w(Path({str(tmp_path / 'set')!r}), Path({str(tmp_path / name)!r}), 120)"
        subprocess.run([sys.executable, "-c", call], check=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert write_tokenizer(tmp_path / "set", tmp_path / "c", 120) == 120


def test_refusals(tmp_path: Path, shard_folder: Path) -> None:
    with pytest.raises(UserError, match=r"^`vocab_size` \(=7\) must be at least \d+, to hold every character$"):
        train_tokenizer(TEXTS, 7)
    with pytest.raises(UserError, match="must lie in a folder that exists"):
        write_tokenizer(shard_folder, tmp_path / "none/tokenizer.json")
