"""Fine-tuning for retrieval: pretraining's loop, engine and data path, from a checkpoint, with other settings."""

from pathlib import Path

from finetune.config import FinetuneConfig, pretrain_config
from finetune.retrieval import RetrievalSet
from finetune.validation import Validation
from pretrain.checkpoint import load_checkpoint
from pretrain.folder import BEST
from pretrain.train import fit
from shards.sources.base import Source


def fine_tune(
    ckpt: Path,
    source: Source,
    config: FinetuneConfig,
    shards: Path | None = None,
    validation: RetrievalSet | None = None,
) -> Path:
    """Runs fine-tuning and returns the best checkpoint on the validation pairs, without any the last one.

    Args:
        ckpt: A checkpoint folder, or a run folder for its best or latest; heads that it lacks start fresh.
        shards: Where `source` came from if from shards, for the record.
        validation: Pairs that decide which checkpoint is kept and when to stop; never those of the test.

    Raises:
        UserError: before any process group starts or file is written.
    """
    checkpoint = load_checkpoint(ckpt)
    chosen = pretrain_config(config, checkpoint.config, str(shards or ""))
    if validation is None:
        return fit(chosen, source, initial=checkpoint)
    judge = Validation(validation, Path(chosen.run.out), config.validation)
    fit(chosen, source, initial=checkpoint, judge=judge)
    return Path(chosen.run.out) / BEST
