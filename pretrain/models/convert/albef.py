"""ALBEF (arXiv:2107.07651) as its authors' training script saves it: a timm vision transformer and one BERT.

The first of BERT's layers are our text encoder, the last, with cross-attention, our trunk.
"""

from pretrain.models.config import ModelConfig
from pretrain.models.convert.bert import TIED, attention, layer, word_head, word_ties
from pretrain.models.convert.rules import Rule, Table, modules

TEXT_LAYERS = 6


def albef_table(config: ModelConfig) -> Table:
    """Their layers are numbered through; ours start from 0 in each part.

    Files of the pretraining script keep BERT under `text_encoder.bert`, those of retrieval under `text_encoder`.
    """
    first = int(config.text.options.get("num_hidden_layers", TEXT_LAYERS))
    rules: list[Rule] = [
        Rule(("visual_encoder.{rest}",), ("model.vision.backbone.{rest}",)),
        *modules("", "model.", {"vision_proj": "image_projection", "text_proj": "text_projection"}),
        *modules("", "objectives.itm.", {"itm_head": "head"}),
        Rule(("temp",), ("objectives.itc.log_temperature",), "log"),
        *word_head("text_encoder.cls.predictions"),
    ]
    for bert in ("text_encoder.bert.", "text_encoder."):
        rules += [Rule((f"{bert}embeddings.{{rest}}",), ("model.text.bert.embeddings.{rest}",))]
        for n in range(first):
            rules += [Rule((f"{bert}encoder.layer.{n}.{{rest}}",), (f"model.text.bert.encoder.layer.{n}.{{rest}}",))]
        for n in range(config.fusion.depth):
            theirs, ours = f"{bert}encoder.layer.{first + n}", f"model.fusion.blocks.{n}"
            rules += layer(theirs, ours, last_norm=2)
            rules += attention(f"{theirs}.crossattention", f"{ours}.cross_attention", f"{ours}.norms.1")
    return Table(
        tuple(rules),
        ignored=(*(f"{side}_m.{{rest}}" for side in MOMENTUM), *QUEUES, *TIED),
        tied=word_ties("text_encoder.cls.predictions", "text_encoder.bert.embeddings."),
        fresh=("momentum.{rest}", "objectives.itc.queue.{rest}"),
    )


MOMENTUM = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
"""What it keeps a slow copy of; ours start from the weights."""

QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue")
