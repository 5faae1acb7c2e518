"""A training step of ViLT (masked words and matching) against `transformers`: same shapes, weights, texts, pictures.

The peer is what one writes with its classes: two forwards over a shared encoder, one for masked words and one for
pairs of which half have another text. Its users pad texts to the batch's longest, or to 40 tokens (`max_length`).

python -m benchmarks.model.vilt [--size half]
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForMaskedLM

from benchmarks.model.inputs import BERT_WORDS, Captions, picture_sizes, pixels
from benchmarks.model.steps import Arm, autocast, check, compare, parse
from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.models.convert.vilt import VILT
from pretrain.objectives.negatives import swap_texts
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import copy

SIZES = {
    "tiny": {"width": 64, "layers": 2, "pairs": 4, "side": 128},
    "half": {"width": 384, "layers": 6, "pairs": 16, "side": 384},
    "full": {"width": 768, "layers": 12, "pairs": 4, "side": 384},
}
PATCH, LONGEST = 32, 40


def ours(size: dict[str, int], dropout: float) -> Task:
    width, heads = size["width"], size["width"] // 64
    embedder = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 0, "layer_norm_eps": 1e-12}
    fusion = {
        "trunk": "joint",
        "depth": size["layers"],
        "heads": heads,
        "norm": "pre",
        "eps": 1e-12,
        "dropout": dropout,
    }
    model = {
        "image_size": size["side"],
        "vision": {"patch": {"size": PATCH, "width": width, "dropout": dropout}},
        "text": {"options": embedder | {"max_position_embeddings": LONGEST, "hidden_dropout_prob": dropout}},
        "fusion": fusion | {"types": True, "pooler": "tanh"},
        "embedding_dim": None,
    }
    objectives = {"mlm": {}, "itm": {"negatives": "swap"}}
    config = parse_config(PretrainConfig, {"model": model, "objectives": objectives})
    return Task(config.model, config.objectives, BERT_WORDS)


class Theirs(nn.Module):
    """Both of transformers' heads on one ViLT."""

    def __init__(self, size: dict[str, int], dropout: float) -> None:
        super().__init__()
        config = ViltConfig(
            vocab_size=BERT_WORDS,
            hidden_size=size["width"],
            num_hidden_layers=size["layers"],
            num_attention_heads=size["width"] // 64,
            intermediate_size=4 * size["width"],
            image_size=size["side"],
            patch_size=PATCH,
            max_position_embeddings=LONGEST,
            max_image_length=-1,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.words, self.pairs = ViltForMaskedLM(config), ViltForImageAndTextRetrieval(config)
        self.pairs.vilt = self.words.vilt

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        image = {"pixel_values": inputs["pixels"], "pixel_mask": inputs["pixel_mask"]}
        words = self.words(inputs["masked"], inputs["mask"], labels=inputs["labels"], **image)
        scores_B = self.pairs(inputs["swapped"], inputs["swapped_mask"], **image).logits[:, 0]
        return words.loss + F.binary_cross_entropy_with_logits(scores_B.float(), inputs["match"])


def as_theirs(batch: Batch, length: int) -> dict[str, Tensor]:
    """What ViLT's processor and collator would give, texts padded to `length`."""
    swap, missing = swap_texts(batch), length - batch.token_ids_BL.shape[1]
    height, width = batch.pixels_BHWC.shape[1:3]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    pixel_mask = torch.stack([(rows < h) & (columns < w) for h, w in batch.image_sizes_B2.tolist()])
    normal_BCHW = (batch.pixels_BHWC.float() / 255 - 0.5).permute(0, 3, 1, 2) / 0.5
    mask_BL = F.pad(batch.token_mask_BL.long(), (0, missing))
    return {
        "masked": F.pad(batch.masked_ids_BL, (0, missing)),
        "labels": F.pad(batch.masked_labels_BL, (0, missing), value=IGNORE),
        "mask": mask_BL,
        "swapped": F.pad(batch.token_ids_BL, (0, missing))[swap.source_B],
        "swapped_mask": mask_BL[swap.source_B],
        "match": swap.match_B.float(),
        "pixels": (normal_BCHW * pixel_mask[:, None]).contiguous(),
        "pixel_mask": pixel_mask.long(),
    }


def main() -> None:
    arguments = parse(__doc__, SIZES)
    size = SIZES[arguments.size]
    arguments.pairs = arguments.pairs or size["pairs"]
    captions = Captions(arguments.annotations, "bert", LONGEST)
    batches = [_batch(captions, arguments, size["side"], number) for number in range(arguments.rounds + 1)]
    task, theirs = ours(size, arguments.dropout), Theirs(size, arguments.dropout)
    sources = copy(task, VILT, theirs.pairs, dict(task.named_parameters()))
    sources |= copy(task, VILT, theirs.words, {n: p for n, p in task.named_parameters() if "itm" in n})
    task.to(arguments.device), theirs.to(arguments.device)
    task.autocast = torch.bfloat16 if arguments.device != "cpu" else None

    def peer(length: int | None) -> Arm:
        made = [as_theirs(batch, length or batch.token_ids_BL.shape[1]) for batch in batches]
        inputs = [{name: value.to(arguments.device) for name, value in one.items()} for one in made]

        def loss(number: int) -> Tensor:
            with autocast(arguments):
                return theirs(inputs[number])

        return Arm(f"transformers, texts padded to {length or 'the longest'}", [theirs], loss)

    there = [batch.to(arguments.device) for batch in batches]
    us, longest = Arm("duostream", [task], lambda number: task(there[number])["loss"]), peer(None)
    check(us, longest, task, {name: source for name, source in sources.items() if "itm" not in name})
    shape = f"ViLT, width {size['width']}, {size['layers']} layers, shorter side {size['side']}"
    compare(arguments, [us, longest, peer(LONGEST)], captions, "transformers", shape)


def _batch(captions: Captions, arguments: argparse.Namespace, side: int, number: int) -> Batch:
    """Pictures as ViLT scales them: the shorter side `side`, the longer at most 5 / 3 of it."""
    sizes_B2 = picture_sizes(arguments.pairs, number, side, side * 5 // 3, PATCH)
    height, width = sizes_B2.amax(0).tolist()
    fields = {"pixels_BHWC": pixels(arguments.pairs, height, width, number), "image_sizes_B2": sizes_B2}
    return captions.batch(number, arguments.pairs, **fields)


if __name__ == "__main__":
    main()
