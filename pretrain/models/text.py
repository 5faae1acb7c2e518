"""Text encoders of transformers (BERT, arXiv:1810.04805; RoBERTa; CLIP's), random or from a folder of weights.

Shapes: B texts, L tokens, P tokens that are there, D width.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from pretrain.models.config import TextConfig, TextKind
from pretrain.models.interface import TextInput
from pretrain.models.masks import text_mask
from pretrain.models.packing import Packing
from pretrain.models.tokens import masked_mean
from pretrain.places import locate
from shards.errors import UserError, nearest


class Kind(NamedTuple):
    """Which classes of transformers, what else the model's constructor takes, and places lost before the first."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    extra: dict[str, bool]
    unused_positions: int


KINDS: dict[TextKind, Kind] = {
    "bert": Kind(BertConfig, BertModel, {"add_pooling_layer": False}, 0),
    "roberta": Kind(RobertaConfig, RobertaModel, {"add_pooling_layer": False}, 2),
    "clip": Kind(CLIPTextConfig, CLIPTextModel, {}, 0),
}


class TextEncoder(nn.Module):
    """Token ids -> token features and one pooled vector."""

    def __init__(self, config: TextConfig, vocabulary: int) -> None:
        super().__init__()
        self.kind, self.pooling = config.kind, config.pooling
        self.bert = _create(config, vocabulary)  # the attribute's name is in every checkpoint
        inner: int = self.bert.config.hidden_size
        self.width: int = config.width or inner
        self.project = nn.Linear(inner, config.width) if config.width else nn.Identity()
        self.longest: int = self.bert.config.max_position_embeddings - KINDS[config.kind].unused_positions

    @property
    def word_embedding_VD(self) -> Tensor:
        """The input embedding, float [V, D], which the masked-language head shares."""
        return self.bert.get_input_embeddings().weight

    @property
    def embedding_norm(self) -> nn.Module:
        """The LayerNorm behind the embeddings of words; CLIP's texts have none."""
        if self.kind == "clip":
            raise UserError("`model.vision.region.norm` (=text) needs `model.text.kind` bert or roberta, not clip")
        return self.bert.embeddings.LayerNorm

    def forward(self, text: TextInput, causal: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens float [B, L, D] and pooled float [B, D]. CLIP's tokens see only what stands before them anyway."""
        tokens_BLD = self.project(self._tokens(text, causal))
        return tokens_BLD, pool_text(tokens_BLD, text.mask_BL, self.pooling)

    def _tokens(self, text: TextInput, causal: bool) -> Tensor:
        """transformers' layers over packed tokens; zeros where there is no token."""
        packing = Packing.of(text.mask_BL)
        place_L = torch.arange(packing.places, device=text.ids_BL.device)
        ids_1P, place_1P = (packing.choose(x)[None] for x in (text.ids_BL, place_L.expand(packing.items, -1)))
        mask_B1LL = text_mask(packing, causal or self.kind == "clip")
        if self.kind == "clip":
            embeddings, layers = self.bert.embeddings, self.bert.encoder.layers
            x_1PD = embeddings.token_embedding(ids_1P) + embeddings.position_embedding(place_1P)
        else:
            layers = self.bert.encoder.layer
            segments_1P = None if text.segments_BL is None else packing.choose(text.segments_BL)[None]
            place_1P = place_1P + KINDS[self.kind].unused_positions
            x_1PD = self.bert.embeddings(ids_1P, token_type_ids=segments_1P, position_ids=place_1P)
        for layer in layers:
            x_1PD = layer(x_1PD, mask_B1LL, packing=packing)
        return packing.pad((self.bert.final_layer_norm(x_1PD) if self.kind == "clip" else x_1PD)[0])


def attend_packed(
    layer: nn.Module,
    query_1HPd: Tensor,
    key_1HPd: Tensor,
    value_1HPd: Tensor,
    mask_B1LL: Tensor | None,
    *,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' layers call for their attention, with tokens packed by `packing`; float [1, P, H, d]."""
    q, k, v = (packing.pad(x[0].transpose(0, 1)).transpose(1, 2) for x in (query_1HPd, key_1HPd, value_1HPd))
    mixed_BHLd = F.scaled_dot_product_attention(q, k, v, mask_B1LL, dropout, scale=scaling)
    return packing.pack(mixed_BHLd.transpose(1, 2))[None], None


PACKED = "duostream_packed"
ALL_ATTENTION_FUNCTIONS.register(PACKED, attend_packed)


def pool_text(tokens_BLD: Tensor, mask_BL: Tensor, pooling: Literal["cls", "last", "mean"]) -> Tensor:
    """The vector that stands for the text, float [B, D]."""
    match pooling:
        case "cls":
            return tokens_BLD[:, 0]
        case "last":
            last_B = mask_BL.sum(1) - 1
            return tokens_BLD[torch.arange(len(last_B), device=last_B.device), last_B]
        case "mean":
            return masked_mean(tokens_BLD, mask_BL)


SHAPE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
)
"""The fields of a published config.json that decide what the encoder computes."""


def self_contained_text(config: TextConfig) -> TextConfig:
    """The same encoder without its folder of initial weights: what a checkpoint needs to be built again anywhere."""
    if config.weights is None:
        return config
    published = _published_options(locate("model.text.weights", config.weights), KINDS[config.kind])
    return config.model_copy(update={"weights": None, "options": published | config.options})


def _create(config: TextConfig, vocabulary: int) -> Any:
    kind = KINDS[config.kind]
    folder = locate("model.text.weights", config.weights) if config.weights else None
    _check_names(config.options, kind)
    options = _published_options(folder, kind) | config.options if folder else config.options
    try:
        shape = kind.config(**{"vocab_size": vocabulary, **options}, attn_implementation=PACKED)
        model = kind.model(shape, **kind.extra) if folder is None else _from_folder(folder, shape, kind)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        name = kind.model.__name__
        raise UserError(f"`model.text.options` (={config.options}) is refused by {name}: {reason}") from None
    if shape.vocab_size < vocabulary:
        raise UserError(
            f"`data.tokenizer` has {vocabulary} tokens, but the text encoder's `vocab_size` is {shape.vocab_size}"
        )
    return model


def _check_names(options: dict[str, object], kind: Kind) -> None:
    """A configuration of transformers keeps any keyword as an attribute, so a misspelt one would change nothing."""
    known, name = kind.config().to_dict(), kind.config.__name__
    if unknown := [option for option in options if option not in known]:
        raise UserError(f"`model.text.options.{unknown[0]}` is not a field of {name}{nearest(unknown[0], known)}")


def _published_options(folder: Path, kind: Kind) -> dict[str, object]:
    try:
        published = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"`model.text.weights` (={folder}) holds no readable config.json: {error}") from None
    published, known = published.get("text_config", published), kind.config().to_dict()
    return {name: published[name] for name in SHAPE if name in published and name in known}


def _from_folder(folder: Path, shape: PretrainedConfig, kind: Kind) -> Any:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = kind.model.from_pretrained(
            folder, config=shape, **kind.extra, dtype=torch.float32, output_loading_info=True
        )
    except OSError:
        raise UserError(f"`model.text.weights` (={folder}) holds no weights") from None
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise UserError(f"`model.text.weights` (={folder}) lacks {sorted(info['missing_keys'])[:3]}")
    return model
