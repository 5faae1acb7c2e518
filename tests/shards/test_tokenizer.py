"""A WordPiece tokenizer that is a function of the texts alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from shards.errors import UserError
from shards.sources.scenes import ScenesSource
from shards.tokenizer import SPECIALS, train_sentencepiece, train_tokenizer, write_tokenizer
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


@pytest.mark.parametrize(("kind", "suffix"), [("wordpiece", "json"), ("sentencepiece", "model")])
def test_two_processes_write_identical_files(kind: str, suffix: str, tmp_path: Path) -> None:
    build_shards(ScenesSource(60, 0, "train"), tmp_path / "set")
    program = "import sys; from pathlib import Path; from shards.tokenizer import write_tokenizer as w"
    outs = [tmp_path / f"{name}.{suffix}" for name in ("a", "b")]
    for out in outs:
        call = f"{program}; w(Path({str(tmp_path / 'set')!r}), Path({str(out)!r}), 120, {kind!r})"
        subprocess.run([sys.executable, "-c", call], check=True)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_refusals(tmp_path: Path, shard_folder: Path) -> None:
    with pytest.raises(UserError, match=r"^`vocab_size` \(=7\) must be at least \d+, to hold every character$"):
        train_tokenizer(TEXTS, 7)
    with pytest.raises(UserError, match="must lie in a folder that exists"):
        write_tokenizer(shard_folder, tmp_path / "none/tokenizer.json")


def test_sentencepiece_is_a_function_of_the_texts_and_has_the_special_pieces(tmp_path: Path) -> None:
    model = train_sentencepiece(TEXTS, 40)
    assert model == train_sentencepiece(TEXTS[::-1], 40) == train_sentencepiece(set(TEXTS), 40)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert [processor.id_to_piece(i) for i in range(5)] == ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
    assert processor.decode(processor.encode("The RED star")) == "the red star"
    assert processor.vocab_size() <= 40


def test_sentencepiece_from_shards(tmp_path: Path) -> None:
    build_shards(ScenesSource(60, 0, "train"), tmp_path / "set")
    tokens = write_tokenizer(tmp_path / "set", tmp_path / "spm.model", 150, "sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "spm.model"))
    assert 50 < processor.vocab_size() == tokens <= 150
    assert processor.unk_id() not in processor.encode("a red star above a blue ring")


def test_sentencepiece_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^`vocab_size` \(=7\) cannot be trained: .*smaller than required"):
        train_sentencepiece(TEXTS, 7)
    with pytest.raises(UserError, match="needs at least one caption"):
        train_sentencepiece([], 7)
    with pytest.raises(UserError, match=r"must end in \.model, as `kind` \(=sentencepiece\) has it"):
        write_tokenizer(tmp_path, tmp_path / "t.json", 7, "sentencepiece")
    with pytest.raises(UserError, match=r"`kind` \(=bpe\) must be one of wordpiece, sentencepiece"):
        write_tokenizer(tmp_path, tmp_path / "t.json", 7, "bpe")  # type: ignore[arg-type]
