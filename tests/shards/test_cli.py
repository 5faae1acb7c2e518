"""The `shards` command as a user types it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import cli, console
from tests.shards.conftest import png
from tests.shards.test_scores import write_scores

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shards(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command in this process; returns exit status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            console.run(cli.app, [str(argument) for argument in arguments])
        return int(exit_.value.code or 0), *capsys.readouterr()

    return call


def test_build_verify_tokenizer(shards: Call, tmp_path: Path) -> None:
    out = tmp_path / "set"
    status, text, _ = shards("build", "scenes", "--samples", 30, "--samples-per-shard", 20, "--out", out, "--json")
    assert status == 0
    assert {k: v for k, v in json.loads(text).items() if k in {"shards", "samples"}} == {"shards": 2, "samples": 30}
    status, text, progress = shards("verify", out)
    assert (status, text.endswith("sound\n")) == (0, True)
    assert progress.startswith("verify: 30/30, ")
    status, text, _ = shards("verify", out, "--json")
    assert json.loads(text)["ok"] is True
    assert shards("tokenizer", out, "--out", tmp_path / "t.json", "--vocab-size", 200)[0] == 0
    assert shards("tokenizer", out, "--out", tmp_path / "t.json")[0] == 2
    assert shards("tokenizer", out, "--out", tmp_path / "t.json", "--overwrite")[0] == 0


def test_build_karpathy(shards: Call, karpathy_files: tuple[Path, Path], tmp_path: Path) -> None:
    annotations, images = karpathy_files
    arguments = ("build", "karpathy", "--annotations", annotations, "--images", images, "--out", tmp_path / "set")
    assert shards(*arguments, "--split", "train+restval")[0] == 0
    assert shards(*arguments, "--split", "train")[0] == 2
    status, _, message = shards(*arguments, "--split", "train", "--resume")
    assert (status, "`split` (=train+restval), not train" in message) == (2, True)
    assert shards(*arguments, "--split", "train", "--overwrite")[0] == 0
    assert shards("verify", tmp_path / "set")[0] == 0


SOURCE_FILES = {
    "coco": (
        "captions.json",
        '{"images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}], '
        '"annotations": [{"image_id": 2, "id": 3, "caption": "b"}, {"image_id": 1, "id": 4, "caption": "a"}]}',
    ),
    "albef": ("list.json", '[{"image": "0.png", "caption": "a"}, {"image": "1.png", "caption": ["b"]}]'),
    "flickr30k": ("results.token", "0.png#0\ta\n1.png#0\tb\n"),
    "conceptual-captions": ("cc.tsv", "a\thttp://x/a\nb\thttp://x/b\nc\thttp://x/c\n"),
}


@pytest.mark.parametrize("name", SOURCE_FILES)
def test_build_from_published_forms(name: str, shards: Call, image_files: Path, tmp_path: Path) -> None:
    file, content = SOURCE_FILES[name]
    (tmp_path / file).write_text(content)
    arguments = ["build", name, "--annotations", tmp_path / file, "--images", image_files, "--out", tmp_path / "set"]
    if name == "conceptual-captions":
        (tmp_path / "map.tsv").write_text("http://x/a\t0.png\nhttp://x/b\t1.png\n")
        arguments += ["--map", tmp_path / "map.tsv"]
    status, text, _ = shards(*arguments, "--json")
    counts = {"samples": 2, "skipped": int(name == "conceptual-captions")}
    assert status == 0
    assert json.loads(text).items() >= counts.items()
    text = shards(*arguments, "--overwrite")[1]
    assert text.endswith("; 1 rows skipped, as their image or its regions are not here\n") == bool(counts["skipped"])
    assert shards("verify", tmp_path / "set")[0] == 0


def test_build_folder(shards: Call, image_files: Path, tmp_path: Path) -> None:
    for name in ("0", "1", "more/1"):
        (image_files / f"{name}.txt").write_text(f"text of {name}\n")
    (tmp_path / "table.csv").write_text("file,text\n0.png,a\n")
    arguments = ("build", "folder", "--images", image_files, "--out")
    assert json.loads(shards(*arguments, tmp_path / "beside", "--json")[1])["samples"] == 3
    columns = ("--image-column", "file", "--caption-column", "text")
    text = shards(*arguments, tmp_path / "table", "--table", tmp_path / "table.csv", *columns, "--json")[1]
    assert json.loads(text)["samples"] == 1
    status, _, error = shards(*arguments, tmp_path / "none", *columns)
    assert (status, error) == (2, "error: `--image-column` and `--caption-column` need `--table`\n")


def test_build_with_preset_prints_and_keeps_the_counts(shards: Call, image_files: Path, tmp_path: Path) -> None:
    (image_files / "0.png").write_bytes(png(0, 300, 300))
    (image_files / "1.png").write_bytes(png(1, 300, 300)[:-40])
    table = "image,caption\n0.png,a red dog on grass\n0.png,dog\n1.png,a red dog\nmore/1.png,a red dog\n"
    (tmp_path / "table.csv").write_text(table)
    arguments = (
        "build",
        "folder",
        "--images",
        image_files,
        "--table",
        tmp_path / "table.csv",
        "--out",
        tmp_path / "set",
    )
    status, text, _ = shards(*arguments, "--preset", "datacomp")
    assert status == 0
    assert text.splitlines()[:2] == [
        "3 samples read, 1 kept, 1 rejected by min_short_side, 1 rejected by decodable",
        "4 captions read, 3 kept, 1 rejected by min_words",
    ]
    status, _, error = shards(*arguments, "--preset", "datacomp", "--filter", "min_short_side=4", "--resume")
    assert status == 2
    assert "`filters.min_short_side` (=200), not 4" in error
    status, text, _ = shards(
        *arguments, "--preset", "datacomp", "--filter", "min_short_side=4", "--overwrite", "--json"
    )
    assert json.loads(text)["filtered"]["rejected"] == {"decodable": 1}
    assert shards(*arguments, "--overwrite", "--workers", "2")[0] == 0


def test_filter_writes_shards_or_a_list(shards: Call, shard_folder: Path, tmp_path: Path) -> None:
    arguments = ("filter", shard_folder, "--filter", "exact_duplicates=true", "--filter", "min_words=3")
    status, text, _ = shards(*arguments, "--list", tmp_path / "kept.parquet", "--json")
    assert status == 0
    assert json.loads(text)["filtered"]["kept"] == 50
    assert shards(*arguments, "--list", tmp_path / "kept.parquet")[0] == 2
    assert shards(*arguments, "--out", tmp_path / "new", "--samples-per-shard", 20)[0] == 0
    assert shards("verify", tmp_path / "new")[0] == 0
    scores = write_scores(shard_folder, tmp_path / "scores.parquet", [3, 9], similarity=[0.1, 0.2])
    asked = ("filter", shard_folder, "--scores", scores, "--filter", "min_similarity=0.15", "--list")
    assert json.loads(shards(*asked, tmp_path / "scored.parquet", "--json")[1])["filtered"]["kept"] == 49
    assert shards(*arguments)[2] == "error: give one of `--out` and `--list`\n"
    assert shards("filter", shard_folder, "--out", tmp_path / "x")[2].endswith("needs `--preset` or `--filter`\n")


def test_manifest_of_tars_that_are_there(shards: Call, shard_folder: Path) -> None:
    """Ours, too, are WebDataset tars: only the captions of `.txt` are known to other readers."""
    for path in (*shard_folder.glob("*.parquet"), shard_folder / "manifest.json"):
        path.unlink()
    (shard_folder / "shard-000001.tar").write_bytes(b"none")
    status, text, _ = shards("manifest", shard_folder, "--workers", 2)
    assert status == 0
    assert text.splitlines()[0] == (
        "shard-000001.tar: at byte 0: the file ends without the end of an archive, so members may be missing"
    )
    assert text.splitlines()[-1].startswith(f"{shard_folder}: 7 shards, 42 samples, ")
    assert shards("manifest", shard_folder)[0] == 2
    assert json.loads(shards("manifest", shard_folder, "--overwrite", "--json")[1])["filtered"]["kept"] == 42
    assert shards("verify", shard_folder)[0] == 0


def test_stats_and_inspect(shards: Call, shard_folder: Path, tmp_path: Path) -> None:
    status, text, _ = shards("stats", shard_folder)
    assert (status, text.splitlines()[0].split(",")[1]) == (0, " 7 shards")
    assert json.loads(shards("stats", shard_folder, "--json")[1])["samples"] == 50
    assert shards("inspect", shard_folder, "--html", tmp_path / "page.html", "--samples", 5)[0] == 0
    assert shards("inspect", shard_folder, "--html", tmp_path / "page.html")[0] == 2
    assert shards("inspect", shard_folder, "--html", tmp_path / "none" / "page.html")[0] == 2


def test_verify_exits_1_where_damaged(shards: Call, shard_folder: Path) -> None:
    (shard_folder / "shard-000001.tar").unlink()
    status, text, _ = shards("verify", shard_folder)
    assert status == 1
    assert text.splitlines()[0] == "shard-000001.tar: the file is missing; lost: samples 0 to 7"
    assert text.endswith("damaged, 8 samples lost\n")
    status, text, _ = shards("verify", shard_folder, "--json")
    assert (status, json.loads(text)["lost"]) == (1, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "scenes", "--samples", "0"), "`samples` (=0) must be at least 1"),
        (("build", "scenes", "--samples", "1", "--workers", "0"), "`workers` (=0) must be at least 1"),
        (("build", "scenes", "--samples", "1", "--executor", "slurm"), "`executor` (=slurm) must be local or ray"),
        (("build", "scenes", "--samples", "1", "--filter", "words=1"), "`filter` (=words) must be one of"),
        (("build", "scenes", "--samples", "1", "--split", "dev"), "`split` (=dev) must be one of train, val, test"),
        (("build", "scenes", "--samples", "1", "--resume", "--overwrite"), "exclude each other"),
        (("build", "scenes", "--samples", "1", "--samples-per-shard", "0"), "`samples_per_shard` (=0) must be"),
        (("build", "karpathy", "--annotations", "none", "--images", "."), "`annotations` (=none) must be a file"),
        (("build", "karpathy", "--annotations", "none", "--images", "none"), "`images` (=none) must be a folder"),
    ],
)
def test_bad_input_is_one_sentence_before_any_file(
    arguments: tuple[str, ...], message: str, shards: Call, tmp_path: Path
) -> None:
    status, text, error = shards(*arguments, "--out", tmp_path / "set")
    assert (status, text) == (2, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_every_help_has_an_example(shards: Call) -> None:
    sources = ("scenes", "karpathy", "coco", "albef", "flickr30k", "conceptual-captions", "folder", "sbu")
    sources += ("visual-genome", "bottom-up")
    others = ("verify", "tokenizer", "filter", "manifest", "download", "stats", "inspect")
    for command in (*(("build", source) for source in sources), *((name,) for name in others)):
        status, text, _ = shards(*command, "--help")
        assert status == 0
        assert f"Example:\n    shards {' '.join(command)} " in text


def test_help_is_quick_to_load() -> None:
    program = (
        "import sys, shards.cli; print([m for m in ('torch', 'pyarrow', 'PIL', 'numpy', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).stdout == b"[]\n"
