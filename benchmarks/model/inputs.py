"""What the arms of a benchmark read: captions as token lists of their real lengths, and pictures of real proportions.

Shapes: B pairs, L text tokens, K regions, F region features.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.batch import Batch, Draw
from pretrain.data.masking import IGNORE
from shards.tokenizer import train_tokenizer

BERT_WORDS, CLIP_WORDS = 30522, 49408
MASK, FIRST_WORD = 4, 5  # of our wordpiece tokenizers


class Captions:
    """Texts of a karpathy-form annotation file as token ids, cut to `longest` tokens; a fixed order."""

    def __init__(self, annotations: Path, kind: str, longest: int) -> None:
        images = json.loads(annotations.read_text())["images"]
        texts = [sentence["raw"] for image in images for sentence in image["sentences"][:1]]
        self.ids = _clip(texts) if kind == "clip" else _wordpiece(texts)
        self.ids = [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in self.ids]
        np.random.default_rng(0).shuffle(self.ids)  # type: ignore[arg-type]

    def batch(self, number: int, pairs: int, seed: int = 0, **fields: Any) -> Batch:
        """The `number`-th batch: 15 % of the words of each text hidden, at least one."""
        chosen = [self.ids[(number * pairs + row) % len(self.ids)] for row in range(pairs)]
        length_B = torch.tensor([len(ids) for ids in chosen])
        longest = int(length_B.max())
        mask_BL = torch.arange(longest) < length_B[:, None]
        ids_BL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in chosen])
        generator = torch.Generator().manual_seed(seed + number)
        hidden_BL = torch.rand(pairs, longest, generator=generator) < 0.15
        hidden_BL[torch.arange(pairs), (torch.rand(pairs, generator=generator) * (length_B - 2)).long() + 1] = True
        inner_BL = mask_BL & (torch.arange(longest) > 0) & (torch.arange(longest) < length_B[:, None] - 1)
        hidden_BL &= inner_BL
        return Batch(
            token_ids_BL=ids_BL,
            token_mask_BL=mask_BL,
            masked_ids_BL=torch.where(hidden_BL, MASK, ids_BL),
            masked_labels_BL=torch.where(hidden_BL, ids_BL, IGNORE),
            group_B=torch.arange(pairs),
            draws_BK=torch.rand(pairs, len(Draw), generator=generator, dtype=torch.float64),
            **fields,
        )

    @property
    def lengths(self) -> str:
        """For people."""
        lengths = np.array([len(ids) for ids in self.ids])
        return f"{lengths.mean():.1f} tokens on average, {np.percentile(lengths, 99):.0f} at 99 %, {lengths.max()} most"


def _wordpiece(texts: list[str]) -> list[list[int]]:
    tokenizer = train_tokenizer(texts)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def _clip(texts: list[str]) -> list[list[int]]:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    frame = tokenizer.sot_token_id, tokenizer.eot_token_id
    return [[frame[0], *tokenizer.encode(text), frame[1]] for text in texts]


def picture_sizes(pairs: int, number: int, shorter: int, longer: int, patch: int) -> torch.Tensor:
    """int64 [B, 2], height and width: photos of 4:3, 3:2, 1:1 and 16:9, a third upright, as COCO has them, scaled to
    `shorter` and at most `longer`, and cut to whole patches."""
    rng = np.random.default_rng(number)
    ratios = rng.choice([4 / 3, 3 / 2, 1.0, 16 / 9], size=pairs, p=[0.6, 0.25, 0.07, 0.08])
    long = np.minimum(ratios * shorter, longer).astype(int) // patch * patch
    short = np.full(pairs, shorter // patch * patch)
    upright = rng.random(pairs) < 1 / 3
    return torch.from_numpy(np.where(upright[:, None], np.stack([long, short], 1), np.stack([short, long], 1)))


def pixels(pairs: int, height: int, width: int, number: int) -> torch.Tensor:
    """uint8 [B, H, W, 3]."""
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 256, (pairs, height, width, 3), generator=generator, dtype=torch.uint8)


def regions(pairs: int, number: int, features: int = 2048, count: int = 36) -> dict[str, torch.Tensor]:
    """Fields of `Batch`: `count` regions for each image, with what a detector says of them, 15 % of them hidden."""
    generator = torch.Generator().manual_seed(number)
    shape = (pairs, count)
    hidden_BK = torch.rand(shape, generator=generator) < 0.15
    hidden_BK[:, 0] = True
    attributes_BK1 = torch.randint(400, (*shape, 1), generator=generator)
    return {
        "region_features_BKF": torch.rand(*shape, features, generator=generator),
        "region_boxes_BK4": torch.rand(*shape, 4, generator=generator),
        "region_mask_BK": torch.ones(shape, dtype=torch.bool),
        "masked_regions_BK": hidden_BK,
        "region_labels_BK": torch.randint(1600, shape, generator=generator),
        "region_attributes_BKA": attributes_BK1,
    }
