"""A training step of VisualBERT (masked words, and whether the text is of the image, in one pass) against
`transformers.VisualBertForPreTraining`: same shapes, weights, texts and regions, 36 of them for each image.

Its users pad texts to the batch's longest, or to a fixed length (here 40).

python -m benchmarks.model.visual_bert [--size half]
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import VisualBertConfig, VisualBertForPreTraining

from benchmarks.model.inputs import BERT_WORDS, Captions, regions
from benchmarks.model.steps import Arm, check, compare, padded_arm, parse
from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.models.convert.visual_bert import VISUAL_BERT
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import copy

SIZES = {
    "tiny": {"width": 64, "layers": 2, "pairs": 4},
    "half": {"width": 384, "layers": 6, "pairs": 32},
    "full": {"width": 768, "layers": 12, "pairs": 8},
}
LONGEST = 40


def ours(size: dict[str, int], dropout: float) -> Task:
    width, heads = size["width"], size["width"] // 64
    words = {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": 0, "hidden_dropout_prob": dropout}
    model = {
        "vision": {"region": {"width": width, "type_vector": True, "norm": "text", "dropout": dropout}},
        "text": {"options": words},
        "fusion": {"trunk": "joint", "depth": size["layers"], "heads": heads, "eps": 1e-12, "pooler": "tanh"}
        | {"dropout": dropout},
        "embedding_dim": None,
    }
    objectives = {"mlm": {}, "pollution": {"text": "masked"}}
    values = {"model": model, "objectives": objectives, "data": {"regions": {}, "second": "caption"}}
    config = parse_config(PretrainConfig, values)
    return Task(config.model, config.objectives, BERT_WORDS)


def theirs(size: dict[str, int], dropout: float) -> VisualBertForPreTraining:
    width = size["width"]
    config = VisualBertConfig(
        vocab_size=BERT_WORDS,
        hidden_size=width,
        visual_embedding_dim=2048,
        num_hidden_layers=size["layers"],
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return VisualBertForPreTraining(config)


def as_theirs(batch: Batch, length: int) -> dict[str, Tensor]:
    missing = length - batch.token_ids_BL.shape[1]
    visual_mask = batch.region_mask_BK.long()
    labels_BL = F.pad(batch.masked_labels_BL, (0, missing + visual_mask.shape[1]), value=IGNORE)
    return {
        "input_ids": F.pad(batch.masked_ids_BL, (0, missing)),
        "attention_mask": F.pad(batch.token_mask_BL.long(), (0, missing)),
        "visual_embeds": batch.region_features_BKF,
        "visual_attention_mask": visual_mask,
        "labels": labels_BL,
        "sentence_image_labels": batch.pollution_B,
    }


def main() -> None:
    arguments = parse(__doc__, SIZES)
    size, device = SIZES[arguments.size], arguments.device
    arguments.pairs = pairs = arguments.pairs or size["pairs"]
    captions = Captions(arguments.annotations, "bert", LONGEST)
    batches = [captions.batch(n, pairs, **_seen(pairs, n)).to(device) for n in range(arguments.rounds + 1)]
    task, peer = ours(size, arguments.dropout), theirs(size, arguments.dropout)
    head = {f"objectives.pollution.head.{n}": p.detach() for n, p in peer.cls.seq_relationship.named_parameters()}
    sources = copy(task, VISUAL_BERT, peer, head)
    task.to(device), peer.to(device)
    task.autocast = torch.bfloat16 if device != "cpu" else None

    def arm(length: int | None) -> Arm:
        return padded_arm(arguments, peer, batches, as_theirs, length)

    us, longest = Arm("duostream", [task], lambda number: task(batches[number])["loss"]), arm(None)
    check(us, longest, task, sources)
    shape = f"VisualBERT, width {size['width']}, {size['layers']} layers, 36 regions"
    compare(arguments, [us, longest, arm(LONGEST)], captions, "transformers", shape)


def _seen(pairs: int, number: int) -> dict[str, Tensor]:
    """Regions, none of them hidden; half of the texts count as those of other images."""
    fields = regions(pairs, number) | {"pollution_B": torch.arange(pairs) % 2}
    return {name: value for name, value in fields.items() if name != "masked_regions_BK"}


if __name__ == "__main__":
    main()
