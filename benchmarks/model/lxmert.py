"""A training step of LXMERT (masked words; classes, attributes and features of masked regions) against
`transformers.LxmertForPreTraining`: same shapes, weights, texts and regions, 36 of them for each image, one pass each.

Its users pad texts to the batch's longest, or to a fixed length (here 40).

python -m benchmarks.model.lxmert [--size half]
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LxmertConfig, LxmertForPreTraining

from benchmarks.model.inputs import BERT_WORDS, Captions, regions
from benchmarks.model.steps import Arm, check, compare, padded_arm, parse
from pretrain.batch import Batch
from pretrain.config import PretrainConfig
from pretrain.data.masking import IGNORE
from pretrain.models.convert.lxmert import lxmert_table
from pretrain.settings import parse_config
from pretrain.task import Task
from tests.parity.weights import copy

SIZES = {
    "tiny": {"width": 64, "layers": (2, 1, 1), "pairs": 4},
    "half": {"width": 384, "layers": (5, 3, 3), "pairs": 32},
    "full": {"width": 768, "layers": (9, 5, 5), "pairs": 8},
}
"""Layers that read text alone, regions alone, and both."""
LONGEST = 40
HEADS = {"mrc": "obj", "mra": "attr", "mrf": "feat"}


def settings(size: dict[str, object], dropout: float) -> PretrainConfig:
    width, (texts, images, both) = size["width"], size["layers"]
    calm = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    words = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    region = {"width": width, "box": "box4", "combine": "mean", "norm_parts": True, "norm": False, "dropout": dropout}
    co = {"placement": [f"image*{images}", f"cross*{both}"], "order": ["cross", "self", "feed"], "shared": True}
    fusion = {"trunk": "co_attention", "heads": width // 64, "eps": 1e-12, "pooler": "tanh", "dropout": dropout}
    model = {
        "vision": {"region": region},
        "text": {"options": words | calm | {"num_hidden_layers": texts}},
        "fusion": fusion | {"co_attention": co},
        "embedding_dim": None,
    }
    masked = {"text": "masked"}
    objectives = {
        "mlm": {"image": "masked"},
        "mrc": {"classes": 1600, "target": "label", **masked},
        "mra": {"classes": 400, **masked},
        "mrf": {"error": "smooth_l1", **masked},
    }
    data = {"regions": {"hide": 0.15}}
    return parse_config(PretrainConfig, {"model": model, "objectives": objectives, "data": data})


def theirs(size: dict[str, object], dropout: float) -> LxmertForPreTraining:
    width, (texts, images, both) = size["width"], size["layers"]
    config = LxmertConfig(
        vocab_size=BERT_WORDS,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        l_layers=texts,
        r_layers=images,
        x_layers=both,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        task_qa=False,
        visual_loss_normalizer=1.0,
    )
    model = LxmertForPreTraining(config)
    for table in (model.lxmert.embeddings.position_embeddings, model.lxmert.embeddings.token_type_embeddings):
        table.padding_idx = None  # that of words, given to these too: it only keeps row 0 from learning
    return model


def region_heads(model: LxmertForPreTraining) -> dict[str, Tensor]:
    """Their one transform in front of three outputs, for each of our three heads."""
    head, made = model.obj_predict_head, {}
    for name, output in HEADS.items():
        parts = {"transform.0": head.transform.dense, "transform.2": head.transform.LayerNorm}
        parts["output"] = head.decoder_dict[output]
        for ours, part in parts.items():
            made |= {f"objectives.{name}.{ours}.{kind}": value.detach() for kind, value in part.named_parameters()}
    return made


def as_theirs(batch: Batch, length: int) -> dict[str, object]:
    missing, hidden_BK = length - batch.token_ids_BL.shape[1], batch.masked_regions_BK
    weight_BK = hidden_BK * (hidden_BK.numel() / hidden_BK.sum())  # theirs is a mean over all regions, seen ones too
    classes, attributes = batch.region_labels_BK, batch.region_attributes_BKA[..., 0]
    targets = {"obj": classes, "attr": attributes, "feat": batch.region_features_BKF}
    return {
        "input_ids": F.pad(batch.masked_ids_BL, (0, missing)),
        "attention_mask": F.pad(batch.token_mask_BL.long(), (0, missing)),
        "labels": F.pad(batch.masked_labels_BL, (0, missing), value=IGNORE),
        "visual_feats": batch.region_features_BKF.masked_fill(hidden_BK[..., None], 0),
        "visual_pos": batch.region_boxes_BK4,
        "visual_attention_mask": batch.region_mask_BK.long(),
        "obj_labels": {name: (target, weight_BK) for name, target in targets.items()},
    }


def main() -> None:
    arguments = parse(__doc__, SIZES)
    size, device = SIZES[arguments.size], arguments.device
    arguments.pairs = pairs = arguments.pairs or size["pairs"]
    captions, config = Captions(arguments.annotations, "bert", LONGEST), settings(size, arguments.dropout)
    batches = [captions.batch(n, pairs, **regions(pairs, n)).to(device) for n in range(arguments.rounds + 1)]
    task, peer = Task(config.model, config.objectives, BERT_WORDS), theirs(size, arguments.dropout)
    sources = copy(task, lxmert_table(config.model), peer, region_heads(peer))
    task.to(device), peer.to(device)
    task.autocast = torch.bfloat16 if device != "cpu" else None

    def arm(length: int | None) -> Arm:
        return padded_arm(arguments, peer, batches, as_theirs, length)

    us, longest = Arm("duostream", [task], lambda number: task(batches[number])["loss"]), arm(None)
    check(us, longest, task, {name: source for name, source in sources.items() if "pooler" not in name})
    layers = " + ".join(map(str, size["layers"]))
    shape = f"LXMERT, width {size['width']}, {layers} layers, 36 regions"
    compare(arguments, [us, longest, arm(LONGEST)], captions, "transformers", shape)


if __name__ == "__main__":
    main()
