"""ViLT (arXiv:2102.03334) as its authors' training script saves it: a timm transformer behind BERT's embeddings."""

from pretrain.models.config import ModelConfig
from pretrain.models.convert.bert import QKV, TIED, WORDS, word_head, word_ties
from pretrain.models.convert.rules import Rule, Table, modules

_BLOCK, _LAYER = "model.fusion.blocks.{n}.", "transformer.blocks.{n}."

VILT_AUTHORS = Table(
    (
        Rule(("text_embeddings.{rest}",), (f"{WORDS}{{rest}}",)),
        Rule(("token_type_embeddings.weight",), ("model.fusion.types.weight",)),
        Rule(
            ("transformer.cls_token", "transformer.pos_embed"),
            ("model.vision.class_token", "model.vision.positions"),
            "positions",
        ),
        *modules("transformer.", "model.", {"patch_embed.proj": "vision.projection", "norm": "fusion.final_norm"}),
        Rule(
            (f"{_LAYER}attn.qkv.{{kind}}",),
            tuple(f"{_BLOCK}self_attention.{part}.{{kind}}" for part in QKV),
            "split",
        ),
        *modules(_LAYER, _BLOCK, {"attn.proj": "self_attention.out", "norm1": "norms.0", "norm2": "norms.1"}),
        *modules(_LAYER, _BLOCK, {"mlp.fc1": "feed_forward.0", "mlp.fc2": "feed_forward.3"}),
        *modules("", "model.fusion.", {"pooler.dense": "pooler.text"}),
        *word_head("mlm_score"),
        # Behind retrieval a file holds a ranking head too, which began as the second row of the other and was trained.
        Rule(("rank_output.{kind}",), ("objectives.itm.head.{kind}",), "match"),
        *modules("itm_score.", "objectives.itm.", {"fc": "head"}),
    ),
    ignored=("text_embeddings.position_ids", *TIED),
    tied=word_ties("mlm_score", "text_embeddings."),
)


def vilt_authors_table(_: ModelConfig) -> Table:
    """The same for every size."""
    return VILT_AUTHORS
