"""OSCAR (arXiv:2004.06165) and VinVL (arXiv:2101.00529) as their authors' scripts save them: one BERT over words, tags
and regions, with the head of pretraining or that of retrieval."""

from pretrain.models.config import ModelConfig
from pretrain.models.convert.bert import TIED, WORDS, layer, word_head, word_ties
from pretrain.models.convert.rules import Rule, Table, modules

OSCAR = Table(
    (
        Rule(("bert.embeddings.{rest}",), (f"{WORDS}{{rest}}",)),
        *modules("bert.", "model.vision.", {"img_embedding": "feature", "LayerNorm": "norm"}),
        *layer("bert.encoder.layer.{n}", "model.fusion.blocks.{n}"),
        *modules("bert.", "model.fusion.", {"pooler.dense": "pooler.text"}),
        *word_head("cls.predictions"),
        # Wrong tags are their class 1 and wrong captions 2, ours are the other way round.
        Rule(("cls.seq_relationship.{kind}",), ("objectives.pollution.head.{kind}",), "kinds"),
        *modules("", "objectives.itm.", {"classifier": "head"}),
    ),
    ignored=("bert.embeddings.position_ids", *TIED),
    tied=word_ties("cls.predictions", "bert.embeddings."),
)


def oscar_table(_: ModelConfig) -> Table:
    """The same for every size."""
    return OSCAR
