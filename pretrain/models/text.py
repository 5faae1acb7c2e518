"""BERT-shaped text encoder (arXiv:1810.04805), random or from a folder of weights.

Shapes: B texts, L tokens, D width.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging

from pretrain.models.config import TextConfig
from pretrain.models.interface import TextInput
from pretrain.models.masks import text_mask
from pretrain.places import locate
from shards.errors import UserError, nearest


class TextEncoder(nn.Module):
    """Token ids -> token features and one pooled vector."""

    def __init__(self, config: TextConfig, vocabulary: int) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.bert = _create(config, vocabulary)
        self.width: int = self.bert.config.hidden_size
        self.longest: int = self.bert.config.max_position_embeddings

    @property
    def word_embedding_VD(self) -> Tensor:
        """The input embedding, float [V, D], which the masked-language head shares."""
        return self.bert.embeddings.word_embeddings.weight

    def forward(self, text: TextInput, causal: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens float [B, L, D] and pooled float [B, D]."""
        mask = text_mask(text.mask_BL, causal) if causal else text.mask_BL
        tokens_BLD = self.bert(
            input_ids=text.ids_BL, attention_mask=mask, token_type_ids=text.segments_BL
        ).last_hidden_state
        if self.pooling == "cls":
            return tokens_BLD, tokens_BLD[:, 0]
        weights_BL1 = text.mask_BL.unsqueeze(-1).to(tokens_BLD.dtype)
        return tokens_BLD, (tokens_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)


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
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
"""The fields of a published config.json that decide what the encoder computes."""


def self_contained_text(config: TextConfig) -> TextConfig:
    """The same encoder without its folder of initial weights: what a checkpoint needs to be built again anywhere."""
    if config.weights is None:
        return config
    published = _published_options(locate("model.text.weights", config.weights))
    return config.model_copy(update={"weights": None, "options": published | config.options})


def _create(config: TextConfig, vocabulary: int) -> BertModel:
    folder = locate("model.text.weights", config.weights) if config.weights else None
    _check_names(config.options)
    options = _published_options(folder) | config.options if folder else config.options
    try:
        bert_config = BertConfig(**{"vocab_size": vocabulary, **options}, attn_implementation="sdpa")
        model = BertModel(bert_config, add_pooling_layer=False) if folder is None else _from_folder(folder, bert_config)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"`model.text.options` (={config.options}) is refused by BertModel: {reason}") from None
    if bert_config.vocab_size < vocabulary:
        raise UserError(
            f"`data.tokenizer` has {vocabulary} tokens, but the text encoder's `vocab_size` is {bert_config.vocab_size}"
        )
    return model


def _check_names(options: dict[str, object]) -> None:
    """BertConfig keeps any keyword as an attribute, so a misspelt one would change nothing."""
    known = BertConfig().to_dict()
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"`model.text.options.{unknown[0]}` is not a field of BertConfig{nearest(unknown[0], known)}")


def _published_options(folder: Path) -> dict[str, object]:
    try:
        published = json.loads((folder / "config.json").read_text())
        return {name: published[name] for name in SHAPE if name in published}
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"`model.text.weights` (={folder}) holds no readable config.json: {error}") from None


def _from_folder(folder: Path, bert_config: BertConfig) -> BertModel:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = BertModel.from_pretrained(
            folder, config=bert_config, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
        )
    except OSError:
        raise UserError(f"`model.text.weights` (={folder}) holds no weights") from None
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:
        raise UserError(f"`model.text.weights` (={folder}) lacks {sorted(info['missing_keys'])[:3]}")
    return model
