"""Before step one: a batch of the largest shape goes forward and backward, and nothing stays of it.

What does not fit into memory shows now, in one sentence, rather than at the first long text hours later.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.engine import Engine
from shards.errors import UserError

TEXT = ("token_ids_BL", "token_mask_BL", "masked_ids_BL", "masked_labels_BL", "segments_BL")
REGIONS = (
    "region_features_BKF",
    "region_boxes_BK4",
    "region_mask_BK",
    "region_labels_BK",
    "region_attributes_BKA",
    "region_probabilities_BKC",
    "masked_regions_BK",
)
MASKS = ("token_mask_BL", "region_mask_BK")
ALLOCATOR = "DefaultCPUAllocator"
"""What torch's sentence on a host without memory names; for it there is no class."""


def rehearse(engine: Engine, batch: Batch, config: PretrainConfig, world: int) -> None:
    """Every rank calls it with a batch as it would train on; the engine is as before, bit for bit.

    Raises:
        UserError: this rank's memory does not hold a step.
    """
    try:
        engine.rehearse(batch, largest(batch, config))
    except (RuntimeError, MemoryError) as error:
        if not _no_memory(error):
            raise
        raise UserError(_advice(config, world, str(error).splitlines()[0])) from None


def largest(batch: Batch, config: PretrainConfig) -> Batch:
    """The same pairs with the longest texts and the most regions that the configuration allows."""
    most = config.data.regions.most if config.data.regions else 0
    longer = dict.fromkeys(TEXT, config.data.max_tokens) | dict.fromkeys(REGIONS, most)
    present = {name: value for name in longer if (value := getattr(batch, name)) is not None}
    changed = {name: _repeated(value, longer[name]) for name, value in present.items()}
    masks = {name: torch.ones_like(changed[name]) for name in MASKS if name in changed}
    return replace(batch, **(changed | masks))


def _repeated(value: Tensor, length: int) -> Tensor:
    """Columns again from the first on, up to `length` of them, never fewer than there are."""
    columns = torch.arange(max(length, value.shape[1]), device=value.device) % value.shape[1]
    return value[:, columns]


def _no_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or ALLOCATOR in str(error)


def _advice(config: PretrainConfig, world: int, reason: str) -> str:
    batch, engine = config.data.global_batch, config.engine
    raise_too = [f"raise `engine.accumulation` (={engine.accumulation})"]
    if engine.activation_checkpointing is not True:
        raise_too.append("set `engine.activation_checkpointing`")
    return (
        f"`data.global_batch` (={batch}), {batch // world} pairs of up to {config.data.max_tokens} tokens a rank, must "
        f"fit into memory: lower it, {' or '.join(raise_too)} ({reason})"
    )
