"""UNITER (arXiv:1909.11740) as its authors' pretraining script saves it: one BERT over words and regions, all heads."""

from pretrain.models.config import ModelConfig
from pretrain.models.convert.bert import TIED, WORDS, layer, word_head, word_ties
from pretrain.models.convert.rules import Rule, Table, modules

_SEEN, _TYPES = "uniter.img_embeddings.", "token_type_embeddings.weight"
_HIDDEN = {"net.0": "transform.0", "net.2": "transform.2"}

UNITER = Table(
    (
        *(
            Rule((f"uniter.embeddings.{kind}_embeddings.weight",), (f"{WORDS}{kind}_embeddings.weight",))
            for kind in ("word", "position")
        ),
        # A region is a token of the second type.
        Rule((f"uniter.embeddings.{_TYPES}",), (f"{WORDS}{_TYPES}", "model.vision.type_vector"), "and_second"),
        *modules("uniter.embeddings.", WORDS, {"LayerNorm": "LayerNorm"}),
        *modules(_SEEN, "model.vision.", {"img_linear": "feature", "img_layer_norm": "part_norms.0"}),
        *modules(
            _SEEN, "model.vision.", {"pos_linear": "place", "pos_layer_norm": "part_norms.1", "LayerNorm": "norm"}
        ),
        Rule((f"{_SEEN}mask_embedding.weight",), ("model.vision.mask_vector",), "second"),
        *layer("uniter.encoder.layer.{n}", "model.fusion.blocks.{n}"),
        *modules("uniter.", "model.fusion.", {"pooler.dense": "pooler.text"}),
        *word_head("cls.predictions"),
        *modules("", "objectives.itm.", {"itm_output": "head"}),
        *modules("feat_regress.", "objectives.mrf.", _HIDDEN),
        Rule(("feat_regress.weight",), ("objectives.mrf.output.weight",), "transpose"),
        Rule(("feat_regress.bias",), ("objectives.mrf.output.bias",)),
        *modules("region_classifier.", "objectives.mrc.", _HIDDEN | {"net.3": "output"}),
    ),
    ignored=TIED,
    tied=word_ties("cls.predictions", "uniter.embeddings."),
)


def uniter_table(_: ModelConfig) -> Table:
    """The same for every size."""
    return UNITER
