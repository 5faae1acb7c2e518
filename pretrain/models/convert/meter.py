"""METER (arXiv:2111.02387) as its authors' training script saves it: CLIP's image tower without its last layer,
RoBERTa, and BERT's layers with cross-attention on both sides."""

from pretrain.models.config import ModelConfig
from pretrain.models.convert.bert import TIED, attention, layer, word_head, word_ties
from pretrain.models.convert.clip import open_clip_image
from pretrain.models.convert.rules import Rule, Table, modules

SIDES = ("text", "image")


def meter_table(config: ModelConfig) -> Table:
    """A bridge of ours is a layer of each of their two stacks."""
    rules: list[Rule] = [
        *open_clip_image("vit_model."),
        Rule(("text_transformer.embeddings.{rest}",), ("model.text.bert.embeddings.{rest}",)),
        Rule(("text_transformer.encoder.{rest}",), ("model.text.bert.encoder.{rest}",)),
        *modules("cross_modal_", "model.", {"text_transform": "text.project", "image_transform": "vision.project"}),
        Rule(("token_type_embeddings.weight",), ("model.fusion.types.weight",)),
        *word_head("mlm_score"),
        *modules("itm_score.", "objectives.itm.", {"fc": "head"}),
    ]
    for side in SIDES:
        theirs, ours = f"cross_modal_{side}_layers.{{n}}", f"model.fusion.blocks.{{n}}.{side}"
        rules += layer(theirs, ours, last_norm=2)
        rules += attention(f"{theirs}.crossattention", f"{ours}.cross_attention", f"{ours}.norms.1")
        rules += modules("cross_modal_", "model.fusion.", {f"{side}_pooler.dense": f"pooler.{side}"})
    return Table(
        tuple(rules),
        ignored=(
            "vit_model.positional_embedding",  # CLIP's text tower, of which nothing else is left
            "vit_model.ln_final.{kind}",
            "text_transformer.pooler.dense.{kind}",
            "text_transformer.embeddings.position_ids",
            *TIED,
        ),
        tied=word_ties("mlm_score", "text_transformer.embeddings."),
    )
