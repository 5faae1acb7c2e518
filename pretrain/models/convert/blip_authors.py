"""BLIP (arXiv:2201.12086) as its authors' scripts save it: a timm vision transformer and one BERT with cross-attention.

Their pretraining file holds a decoder too, whose self-attention is its own, where our writing head reads through the
layers of the encoder: it must be allowed by name (`text_decoder.*`).
"""

from pretrain.models.config import ModelConfig
from pretrain.models.convert.bert import TIED, WORDS, attention, layer
from pretrain.models.convert.rules import Rule, Table, modules

_LAYER, _OURS = "text_encoder.encoder.layer.{n}", "model.fusion.blocks.{n}"
MOMENTUM = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
QUEUES = ("image_queue", "text_queue", "idx_queue", "queue_ptr", "ptr_queue")

BLIP_AUTHORS = Table(
    (
        Rule(("visual_encoder.{rest}",), ("model.vision.backbone.{rest}",)),
        Rule(("text_encoder.embeddings.{rest}",), (f"{WORDS}{{rest}}",)),
        *layer(_LAYER, _OURS, last_norm=2),
        *attention(f"{_LAYER}.crossattention", f"{_OURS}.cross_attention", f"{_OURS}.norms.1"),
        *modules("", "model.", {"vision_proj": "image_projection", "text_proj": "text_projection"}),
        *modules("", "objectives.itm.", {"itm_head": "head"}),
        Rule(("temp",), ("objectives.itc.log_temperature",), "log"),
    ),
    ignored=(*(f"{side}_m.{{rest}}" for side in MOMENTUM), *QUEUES, *TIED),
    fresh=("momentum.{rest}", "objectives.itc.queue.{rest}"),
    zeros=(f"{WORDS}token_type_embeddings.weight",),  # its texts have no segments
)


def blip_authors_table(_: ModelConfig) -> Table:
    """The same for every size."""
    return BLIP_AUTHORS
