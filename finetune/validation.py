"""Which checkpoint of a fine-tuning run is kept, and when the run may end: by RSUM on validation pairs, never on the
test's.

    RUN/validation.jsonl   a line for each checkpoint that was judged: step, RSUM, and whether it was the best so far
    RUN/best/              the best of them, as files of the checkpoint it was (without what only resuming needs)
"""

import json
import os
import shutil
from pathlib import Path

from finetune.config import ValidationConfig
from finetune.evaluate import check_rerank, choose_every_pair, choose_rerank
from finetune.measure import choose_device
from finetune.ranking import Side, rank
from finetune.recall import Recall
from finetune.retrieval import RetrievalSet, open_input
from finetune.score import Scorer, Similarity
from pretrain import distributed
from pretrain.checkpoint import Checkpoint, load_checkpoint
from pretrain.folder import BEST, VALIDATION, read_lines
from shards.errors import UserError
from shards.storage import sync_path, write_atomically


def open_validation(
    annotations: Path | None, images: Path | None, split: str, validate: str | None
) -> RetrievalSet | None:
    """The pairs that `--validate` names: a split of the annotation file, or a folder of shards; None without one.

    Raises:
        UserError: the split that is trained on, a test split, or nothing there.
    """
    if validate is None:
        return None
    if annotations is not None and (validate.startswith("test") or validate == split):
        what = "the split that is trained on" if validate == split else "a test split"
        raise UserError(f"`--validate` (={validate}) must not be {what}: it chooses the checkpoint")
    shards = Path(validate) if annotations is None else None
    return RetrievalSet.from_source(open_input(annotations, images, validate, shards).source)


def rsum(checkpoint: Checkpoint, data: RetrievalSet, rerank: int, every_pair: bool, device: str = "cpu") -> float:
    """The headline of `finetune evaluate` alone: pessimistic ties, both directions. Every rank calls it."""
    scorer, fold = Scorer(checkpoint, data, device), data.folds(1)[0]
    similarity = Similarity.both(scorer.every_pair(data.folds(1))[0]) if every_pair else scorer.similarity()
    sides = [Side(fold, by_image=True), Side(fold, by_image=False)]
    ranked = rank(scorer, similarity, sides, rerank, "itm")
    return sum(Recall.of(side.ranks.pessimistic).sum for side in ranked)


class Validation:
    """Judges each checkpoint of a run (`pretrain.train.Judge`); a continued run knows what was judged before.

    Raises:
        UserError: a k that says nothing.
    """

    def __init__(self, data: RetrievalSet, out: Path, config: ValidationConfig) -> None:
        check_rerank(config.rerank)
        self._data, self._out, self._config = data, out, config

    def __call__(self, path: Path) -> bool:
        checkpoint = load_checkpoint(path)
        every_pair = choose_every_pair(False, checkpoint)
        found = rsum(
            checkpoint,
            self._data,
            choose_rerank(self._config.rerank, checkpoint, every_pair),
            every_pair,
            _device(),
        )
        judged = [
            line
            for line in read_lines(self._out / VALIDATION, "step", "rsum", "best")
            if line["step"] < checkpoint.step
        ]
        best = all(found > line["rsum"] for line in judged)
        judged.append({"step": checkpoint.step, "rsum": round(found, 4), "best": best})
        distributed.barrier()  # all have read before the first one writes
        if distributed.rank() == 0:
            self._write(judged, path if best else None)
        distributed.barrier()
        return self._config.patience is not None and _since_best(judged) >= self._config.patience

    def _write(self, judged: list[dict[str, object]], best: Path | None) -> None:
        last = judged[-1]
        print(f"validation: step {last['step']}  RSUM {last['rsum']:.1f}{'  (best)' if best else ''}")
        if best:
            _keep(best, self._out / BEST)
        lines = "".join(json.dumps(line) + "\n" for line in judged)
        write_atomically(self._out / VALIDATION, lines.encode())


def _since_best(judged: list[dict[str, object]]) -> int:
    return next(place for place, line in enumerate(reversed(judged)) if line["best"])


def _device() -> str:
    """Where this rank trains."""
    if distributed.collective_device().type == "cuda":
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return choose_device(None)


def _keep(checkpoint: Path, best: Path) -> None:
    """Links the checkpoint's files into `best`, or copies them where the disk has no links; replaces what was there."""
    partial, older = best.with_name(f".partial-{best.name}"), best.with_name(f".older-{best.name}")
    for folder in (partial, older):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            _link(file, partial / file.name)
    if best.exists():
        best.rename(older)
    partial.rename(best)
    sync_path(best.parent)
    shutil.rmtree(older, ignore_errors=True)


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
        sync_path(place)
