"""Dependencies point one way, and each outside world has one door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("shards", "pretrain", "finetune")
"""A package may import itself and those before it."""

DEEPSPEED = "pretrain/engine.py"
NO_CODE = ("launch", "configs")


def imported(source: str) -> Iterator[str]:
    """The modules that a source imports, absolutely, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield module
            case ast.ImportFrom():
                raise AssertionError(f"line {node.lineno}: relative imports hide where an arrow points")


def faults(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at `path`, relative to the root."""
    package = path.split("/")[0]
    later = ORDER[ORDER.index(package) + 1 :]
    found = []
    for module in imported(source):
        top = module.split(".")[0]
        if top in (*later, "tests"):
            found.append(f"{path} imports {module}: {package} must not know {top}")
        if top == "deepspeed" and path != DEEPSPEED:
            found.append(f"{path} imports {module}: only {DEEPSPEED} may")
    return found


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text() for package in ORDER for path in (ROOT / package).rglob("*.py")
    }


def tracked(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_no_arrow_is_reversed():
    files = sources()
    assert len({path.split("/")[0] for path in files}) == len(ORDER)
    assert DEEPSPEED in files
    assert [fault for path, source in files.items() for fault in faults(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("shards/made_up.py", "from pretrain.config import PretrainConfig", "shards must not know pretrain"),
        ("shards/made_up.py", "def f():\n    import finetune.table", "shards must not know finetune"),
        ("pretrain/models/made_up.py", "if True:\n    from finetune import recall", "pretrain must not know finetune"),
        ("finetune/made_up.py", "import os, deepspeed.comm as comm", "only pretrain/engine.py may"),
        ("pretrain/made_up.py", "from tests.pretrain.tiny import tiny_config", "pretrain must not know tests"),
    ],
)
def test_a_reversed_arrow_would_be_found(path, source, fault):
    assert [found for found in faults(path, source) if found.endswith(fault)]


def test_right_arrows_are_no_faults():
    allowed = "from shards.errors import UserError\nimport pretrain.config\nimport torch"
    assert faults("finetune/made_up.py", allowed) == []
    assert faults(DEEPSPEED, "import deepspeed") == []


@pytest.mark.parametrize("folder", NO_CODE)
def test_nothing_can_be_imported_from(folder):
    files = tracked(folder)
    assert files
    assert [path for path in files if path.suffix == ".py"] == []


def test_no_file_imports_from_launch_or_configs():
    assert [path for path, source in sources().items() if {*imported(source)} & {*NO_CODE}] == []
