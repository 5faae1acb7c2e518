"""What goes into a model, what comes out, and what every composition offers.

Shapes: B items, H x W pixels, N image tokens, K regions, F region features, L text tokens, T tokens of either kind,
D width, E embedding size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.rows import Rows

Attention = Literal["bidirectional", "prefix", "seq2seq", "causal", "block"]
"""Who sees whom where both modalities share a sequence; the image counts as written before the text.

`bidirectional`: all see all. `prefix`: image and `prefix_BL` see each other, other text tokens see those and what
stands before them. `seq2seq`: the same without a text prefix. `causal`: every token sees what stands before it, image
tokens too. `block`: each modality sees itself.
"""


@dataclass(frozen=True)
class ImageInput(Rows):
    """Images as pixels or as regions that a detector found.

    Attributes:
        pixels_BHWC: uint8 [B, H, W, 3], RGB.
        features_BKF: float [B, K, F], region features.
        boxes_BK4: float [B, K, 4], left, top, right, bottom as shares of the image's width and height.
        mask_BK: bool [B, K], True where there is a region.
        hidden_BK: bool [B, K], regions whose features the model may not see (masked region modelling).
        probabilities_BKC: float [B, K, C], the detector's distribution over its classes.
        sizes_B2: int64 [B, 2], height and width in pixels of what is an image and not padding; None: all of it.
    """

    pixels_BHWC: Tensor | None = None
    features_BKF: Tensor | None = None
    boxes_BK4: Tensor | None = None
    mask_BK: Tensor | None = None
    hidden_BK: Tensor | None = None
    probabilities_BKC: Tensor | None = None
    sizes_B2: Tensor | None = None


@dataclass(frozen=True)
class TextInput(Rows):
    """Texts as token ids.

    Attributes:
        ids_BL: int64 [B, L].
        mask_BL: bool [B, L], True where there is a token.
        segments_BL: int64 [B, L], 0 for the caption, 1 for tags or a second caption; None is all 0.
        prefix_BL: bool [B, L], tokens that see each other whatever stands before them, under `prefix` attention.
    """

    ids_BL: Tensor
    mask_BL: Tensor
    segments_BL: Tensor | None = None
    prefix_BL: Tensor | None = None


@dataclass(frozen=True)
class Encoded(Rows):
    """One modality alone: encoded by a tower, or merely embedded where the trunk does all the work (`joint`).

    Attributes:
        tokens_BTD: float [B, T, D] token features (T is N for images, L for texts).
        mask_BT: bool [B, T], True where there is a token.
        shared_BE: float [B, E], L2-normalised, comparable across modalities by dot product; None where the model has
            no shared space.
        prefix_BT: As in `TextInput`.
        read_BT: bool [B, T], of a text, the tokens that will be read once they are fused, beside the first, which
            stands for the pair; of the image then none will. None is all of both.
    """

    tokens_BTD: Tensor
    mask_BT: Tensor
    shared_BE: Tensor | None = None
    prefix_BT: Tensor | None = None
    read_BT: Tensor | None = None

    @property
    def embedding_BE(self) -> Tensor:
        """`shared_BE`, which the caller knows to be there."""
        if self.shared_BE is None:
            raise ValueError("a model with `model.embedding_dim` (=null) has no shared space")
        return self.shared_BE

    def padded(self, length: int) -> "Encoded":
        """With places without a token up to `length`."""
        missing = length - self.mask_BT.shape[1]
        prefix_BT, read_BT = (None if x is None else F.pad(x, (0, missing)) for x in (self.prefix_BT, self.read_BT))
        tokens_BTD = F.pad(self.tokens_BTD, (0, 0, 0, missing))
        return Encoded(tokens_BTD, F.pad(self.mask_BT, (0, missing)), self.shared_BE, prefix_BT, read_BT)


@dataclass(frozen=True)
class Memory(Rows):
    """What fusing needs of an image, computed once however many texts it will meet.

    Attributes:
        mask_BN: bool [B, N], True where there is an image token.
        tokens_BND: float [B, N, D], image tokens, for trunks that go on computing with them.
        layers: A pair of keys and values, float [B, heads, N, d], for each layer that reads the image as it is.
    """

    mask_BN: Tensor
    tokens_BND: Tensor | None = None
    layers: Sequence[tuple[Tensor, Tensor]] = ()


@dataclass(frozen=True)
class Fused(Rows):
    """Pairs of a text and an image. Tokens that are not there, or that nobody was to read, may be zero.

    Attributes:
        text_BLD: float [B, L, D].
        image_BND: float [B, N, D], None where the trunk leaves the image as it was encoded.
        pooled_BD: float [B, D], what heads that judge the whole pair read.
    """

    text_BLD: Tensor
    image_BND: Tensor | None
    pooled_BD: Tensor


@dataclass(frozen=True)
class ModelShape:
    """What the heads of objectives are built from.

    Attributes:
        width: Of fused text tokens.
        image_width: Of fused image tokens (of encoded ones where the trunk leaves them alone).
        pooled_width: Of the vector that stands for a pair.
        vocabulary: Rows of the word embedding.
        embedding_dim: Of the shared space; None without one.
        region_dim: F; None for models that read pixels.
        eps: Of LayerNorms in heads.
        image_prefix: Image tokens that stand before the first region or patch (class token, whole-image feature).
    """

    width: int
    image_width: int
    pooled_width: int
    vocabulary: int
    embedding_dim: int | None
    region_dim: int | None = None
    image_prefix: int = 0
    eps: float = 1e-5


class VisionLanguageModel(Protocol):
    """A dual or fused encoder of images and texts."""

    shape: ModelShape
    image_projection: nn.Module
    text_projection: nn.Module
    """Token or pooled features to the shared space, before normalisation (the identity without one)."""

    @property
    def word_embedding_VD(self) -> Tensor:
        """The text side's input embedding, float [V, D]: language heads predict with it."""
        ...

    def encode_image(self, image: ImageInput) -> Encoded: ...

    def encode_text(self, text: TextInput, causal: bool = False) -> Encoded:
        """`causal`: tokens see only what stands before them."""
        ...

    def remember(self, image: Encoded) -> Memory:
        """What fusing needs of the images."""
        ...

    def fuse(self, text: Encoded, memory: Memory, attention: Attention = "bidirectional") -> Fused:
        """Row i of the texts with row i of the images.

        Raises:
            ValueError: the trunk is `none`, or does not know this attention.
        """
        ...
