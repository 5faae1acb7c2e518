"""The composition: an image encoder, a text encoder, a shared space, and a trunk."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.config import ModelConfig
from pretrain.models.fusion import TextQueriesImage
from pretrain.models.interface import Encoded, Memory
from pretrain.models.text import TextEncoder, self_contained_text
from pretrain.models.vision import ImageEncoder


class DuoModel(nn.Module):
    """Satisfies `pretrain.models.interface.VisionLanguageModel`.

    Args:
        vocabulary: Number of tokens of the tokenizer.
    """

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.vision = ImageEncoder(config.vision, config.image_size)
        self.text = TextEncoder(config.text, vocabulary)
        self.width = self.text.width
        self.image_projection = nn.Linear(self.vision.pooled_width, config.embedding_dim)
        self.text_projection = nn.Linear(self.text.width, config.embedding_dim)
        self.fusion = _trunk(config, self.text.width, self.vision.width)

    @property
    def word_embedding_VD(self) -> Tensor:
        return self.text.word_embedding_VD

    def encode_image(self, pixels_BHWC: Tensor) -> Encoded:
        tokens_BND, pooled_BD = self.vision(pixels_BHWC)
        mask_BN = torch.ones(tokens_BND.shape[:2], dtype=torch.bool, device=tokens_BND.device)
        return Encoded(tokens_BND, mask_BN, F.normalize(self.image_projection(pooled_BD), dim=-1))

    def encode_text(self, token_ids_BL: Tensor, token_mask_BL: Tensor) -> Encoded:
        tokens_BLD, pooled_BD = self.text(token_ids_BL, token_mask_BL)
        return Encoded(tokens_BLD, token_mask_BL, F.normalize(self.text_projection(pooled_BD), dim=-1))

    def remember(self, image: Encoded) -> Memory:
        return self._fusing().remember(image)

    def fuse(self, text: Encoded, memory: Memory) -> Tensor:
        return self._fusing()(text, memory)

    def _fusing(self) -> TextQueriesImage:
        if self.fusion is None:
            raise ValueError("a model with `model.fusion.trunk` (=none) cannot fuse")
        return self.fusion


def self_contained(config: ModelConfig) -> ModelConfig:
    """The same composition with no outside weights, for a configuration that travels with its own.

    Raises:
        UserError: the folder that gives the text encoder's shape is not there.
    """
    vision = config.vision.model_copy(update={"weights": None})
    return config.model_copy(update={"vision": vision, "text": self_contained_text(config.text)})


def _trunk(config: ModelConfig, text_width: int, image_width: int) -> TextQueriesImage | None:
    match config.fusion.trunk:
        case "text_queries_image":
            return TextQueriesImage(config.fusion, text_width, image_width)
        case "none":
            return None
