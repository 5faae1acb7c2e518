"""The smallest model that has every part, and batches for it."""

from dataclasses import replace
from pathlib import Path

import torch

from pretrain.batch import Batch, Draw
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.settings import dump_config, parse_config

VOCABULARY = 50
SMALL_BUCKETS = {"zero_optimization": {"reduce_bucket_size": 100_000}}
"""For `engine.deepspeed`: at stage 3 the default reserves 2 GB, and a process that reserved many cannot fork."""


def tiny_config(**changes: object) -> PretrainConfig:
    """All objectives on a 32-wide model; `changes` replace top-level sections."""
    values = {
        "model": {
            "image_size": 32,
            "embedding_dim": 16,
            "vision": {
                "name": "vit_tiny_patch16_224",
                "options": {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
            },
            "text": {
                "options": {
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                    "max_position_embeddings": 32,
                    "hidden_dropout_prob": 0.0,
                    "attention_probs_dropout_prob": 0.0,
                }
            },
            "fusion": {"depth": 1, "heads": 2},
        },
        "objectives": {"itc": {}, "itm": {}, "mlm": {}},
        "data": {"max_tokens": 16, "global_batch": 8},
    }
    return parse_config(PretrainConfig, values | changes)


def random_batch(pairs: int, length: int = 9, seed: int = 0, image_size: int = 32) -> Batch:
    """Pairs with texts of different lengths and about a third of the tokens masked."""
    generator = torch.Generator().manual_seed(seed)
    ids_BL = torch.randint(5, VOCABULARY, (pairs, length), generator=generator)
    lengths_B = torch.randint(4, length + 1, (pairs,), generator=generator)
    mask_BL = torch.arange(length) < lengths_B[:, None]
    chosen_BL = mask_BL & (torch.rand(pairs, length, generator=generator) < 0.3)
    return Batch(
        pixels_BHWC=torch.randint(0, 256, (pairs, image_size, image_size, 3), generator=generator, dtype=torch.uint8),
        token_ids_BL=ids_BL * mask_BL,
        token_mask_BL=mask_BL,
        masked_ids_BL=torch.where(chosen_BL, 4, ids_BL) * mask_BL,
        masked_labels_BL=torch.where(chosen_BL, ids_BL, IGNORE),
        group_B=torch.arange(pairs),
        draws_BK=torch.rand(pairs, len(Draw), generator=generator, dtype=torch.float64),
    )


FEATURES, CLASSES = 7, 5


def tiny_joint(objectives: dict[str, object], **changes: object) -> PretrainConfig:
    """A UNITER in small: regions and words in one sequence, under these objectives; `changes` replace sections."""
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 0,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
    }
    model = {
        "embedding_dim": None,
        "vision": {"region": {"features": FEATURES, "width": 32, "box": "box7"}},
        "text": {"options": text},
        "fusion": {"trunk": "joint", "depth": 2, "heads": 2, "pooler": "tanh"},
    }
    data = {"max_tokens": 16, "global_batch": 8, "second": "tags", "regions": {"hide": 0.3, "classes": CLASSES}}
    return parse_config(PretrainConfig, {"model": model, "objectives": objectives, "data": data} | changes)


def region_batch(pairs: int, regions: int = 6, seed: int = 0) -> Batch:
    """`random_batch` with regions of unequal number in place of pixels, about a third hidden, tags and pollution."""
    generator = torch.Generator().manual_seed(seed + 1)
    batch = random_batch(pairs, seed=seed)
    mask_BK = torch.arange(regions) < torch.randint(2, regions + 1, (pairs, 1), generator=generator)
    corners = torch.rand(pairs, regions, 2, 2, generator=generator).sort(dim=2).values
    shape = (pairs, regions)
    second_BL = torch.arange(batch.token_ids_BL.shape[1]) > 3
    return replace(
        batch,
        pixels_BHWC=None,
        segments_BL=second_BL.long().expand(pairs, -1),
        region_features_BKF=torch.randn(*shape, FEATURES, generator=generator) * mask_BK[..., None],
        region_boxes_BK4=corners.flatten(2) * mask_BK[..., None],
        region_mask_BK=mask_BK,
        region_labels_BK=torch.randint(CLASSES, shape, generator=generator).where(mask_BK, IGNORE),
        region_attributes_BKA=torch.randint(-1, CLASSES, (*shape, 2), generator=generator)
        .clamp(min=-1)
        .apply_(lambda number: IGNORE if number < 0 else number),
        region_probabilities_BKC=torch.randn(*shape, CLASSES, generator=generator).softmax(-1) * mask_BK[..., None],
        masked_regions_BK=mask_BK & (torch.rand(shape, generator=generator) < 0.4),
        phrase_ids_BP=batch.token_ids_BL[:, :5],
        phrase_mask_BP=batch.token_mask_BL[:, :5],
        phrase_box_B4=corners[:, 0].flatten(1),
        pollution_B=torch.randint(3, (pairs,), generator=generator),
    )


def phrase_batch(pairs: int, seed: int = 0, image_size: int = 32) -> Batch:
    """`random_batch` with a phrase for a part of each image; every second one is in the words of its neighbour."""
    generator = torch.Generator().manual_seed(seed + 2)
    batch = random_batch(pairs, seed=seed, image_size=image_size)
    ids_BP = batch.token_ids_BL[:, :4][torch.arange(pairs) // 2 * 2]
    hidden_BP = torch.arange(4) == torch.randint(1, 4, (pairs, 1), generator=generator)
    return replace(
        batch,
        phrase_ids_BP=ids_BP,
        phrase_mask_BP=torch.ones_like(ids_BP, dtype=torch.bool),
        phrase_masked_ids_BP=torch.where(hidden_BP, 4, ids_BP),
        phrase_labels_BP=torch.where(hidden_BP, ids_BP, IGNORE),
        phrase_group_B=torch.arange(pairs) // 2,
        phrase_box_B4=torch.rand(pairs, 2, 2, generator=generator).sort(dim=1).values.flatten(1),
    )


def write_tiny(file: Path, shards: Path, tokenizer: Path) -> Path:
    """`tiny_config` on real inputs, as a file for the command line."""
    data = {"max_tokens": 32, "global_batch": 8, "shards": str(shards), "tokenizer": str(tokenizer)}
    run = {"steps": 4, "log_every": 1, "save_every": 1000}
    file.write_text(dump_config(tiny_config(data=data, run=run)))
    return file
