"""Fine-tuning for retrieval: pretraining's loop, engine and data path, from a checkpoint, with other settings."""

from pathlib import Path

from finetune.config import FinetuneConfig, pretrain_config
from pretrain.checkpoint import load_checkpoint
from pretrain.train import fit
from shards.sources.base import Source


def fine_tune(ckpt: Path, source: Source, config: FinetuneConfig, shards: Path | None = None) -> Path:
    """Runs fine-tuning and returns the last checkpoint.

    Args:
        ckpt: A checkpoint folder, or a run folder for its latest; heads that it lacks start fresh.
        shards: Where `source` came from if from shards, for the record.

    Raises:
        UserError: before any process group starts or file is written.
    """
    checkpoint = load_checkpoint(ckpt)
    chosen = pretrain_config(config, checkpoint.config, str(shards or ""))
    return fit(chosen, source, initial=checkpoint)
