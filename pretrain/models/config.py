"""What a model is made of: trunk x visual embedder x text embedder, and the shared space of both sides."""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pretrain.models.blocks import Activation, BlockShape, Norm
from pretrain.settings import Section

Boxes = Literal["box4", "box5", "box6", "box7", "sines"]
TextKind = Literal["bert", "roberta", "clip"]
Trunk = Literal["joint", "co_attention", "text_queries_image", "encoder_decoder", "first_added", "none"]
Pooler = Literal["first", "tanh", "product", "concatenate"]


class BlocksConfig(Section):
    """A stack of transformer blocks. `hidden` is the width inside the feed-forward, null for four times the width."""

    depth: int = Field(6, ge=1)
    heads: int = Field(12, ge=1)
    norm: Norm = "post"
    dropout: float = Field(0.0, ge=0, lt=1)
    hidden: int | None = Field(None, ge=1)
    activation: Activation = "gelu"
    eps: float = Field(1e-5, gt=0)

    @property
    def block(self) -> BlockShape:
        return BlockShape(self.heads, self.dropout, self.norm, self.hidden, self.activation, self.eps)


class RegionConfig(Section):
    """Features that a detector found, and where.

    `features` is F; `box` which numbers say where a region is (see `pretrain.models.regions.encode_boxes`); `combine`
    how the two meet: one linear layer over both (`concatenate`), or the `sum` or `mean` of one each. `layers` 2 puts a
    ReLU network over the features, `relu` a ReLU behind what they became. `norm_parts` and `norm` put a LayerNorm on
    each part and on the result; `norm` `text` is the one that the words have (VisualBERT). `classes` appends the
    detector's distribution over so many classes to the box. `hidden` is what a hidden region becomes: zeros, or a
    learned vector in place of the feature. `whole_image` puts the mean feature with a full box before the regions,
    `class_token` a learned vector (LightningDOT).
    """

    features: int = Field(2048, ge=1)
    width: int = Field(768, ge=1)
    box: Boxes | None = None
    combine: Literal["sum", "mean", "concatenate"] = "sum"
    layers: Literal[1, 2] = 1
    relu: bool = False
    norm_parts: bool = False
    norm: bool | Literal["text"] = True
    type_vector: bool = False
    eps: float = Field(1e-12, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    classes: int = Field(0, ge=0)
    hidden: Literal["zeros", "learned"] = "zeros"
    whole_image: bool = False
    class_token: bool = False

    @model_validator(mode="after")
    def _one_stands_first(self) -> Self:
        if self.whole_image and self.class_token:
            raise ValueError(
                "`model.vision.region.class_token` and `model.vision.region.whole_image` exclude each other"
            )
        return self


class PatchConfig(Section):
    """Pixels cut into patches, each through one linear layer (ViLT, arXiv:2102.03334).

    `subset` keeps so many random patches of each image in training, null all. `mean` and `std` normalise pixels in
    [0, 1].
    """

    size: int = Field(32, ge=1)
    width: int = Field(768, ge=1)
    class_token: bool = True
    subset: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    mean: float = 0.5
    std: float = Field(0.5, gt=0)


class VisionConfig(Section):
    """A timm backbone, unless `region` or `patch` says otherwise.

    `name` is a timm model name, `options` are passed to its constructor, and `weights` names where its initial weights
    come from: null for random, a file of tensors with timm's names (or `efficientnet_pytorch`'s), such a file inside an
    installed Python package as `package:NAME/PATH`, `hf:USER/NAME[@REVISION]` for a repository that holds a
    model.safetensors with timm's names, or `timm` for the repository of timm's own pretrained tag; positions of another
    image size are stretched as timm does. `patch` starts from those of a timm ViT. `subset` keeps so many
    random tokens of each image in training (Pixel-BERT), null all. `tokens` `pooled` yields the backbone's one pooled
    vector. `last_conv` false leaves out the 1x1 convolution that EfficientNets end with (ALIGN), `stages` keeps that
    many stages of a ResNet (SimVLM). `grids` makes the tokens means over the cells of grids of these sides, one after
    the other (BriVL: 1 and 6), null one token for each place. `width` adds a linear layer to that width. `blocks` puts
    self-attention over the tokens; `pooling` says which vector then stands for the image: the backbone's own, the first
    token's, or the mean of all.
    """

    name: str = "vit_base_patch16_224"
    options: dict[str, Any] = Field({})
    weights: str | None = None
    tokens: Literal["all", "pooled"] = "all"
    last_conv: bool = True
    stages: int | None = Field(None, ge=1, le=3)
    grids: list[Annotated[int, Field(ge=1)]] | None = Field(None, min_length=1)
    subset: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    region: RegionConfig | None = None
    patch: PatchConfig | None = None
    blocks: BlocksConfig | None = None
    pooling: Literal["own", "first", "mean"] = "own"

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.region and self.patch:
            raise ValueError("`model.vision.region` and `model.vision.patch` exclude each other")
        return self


class TextConfig(Section):
    """A text encoder of transformers: `bert`, `roberta`, or `clip` (whose tokens see only what stands before them).
    Without layers (`num_hidden_layers: 0`) it only embeds.

    `options` are fields of the kind's configuration class in transformers. `weights` is null for random, else a local
    folder, `package:NAME/FOLDER` for a folder inside an installed Python package, or `hf:USER/NAME[@REVISION]` for a
    repository with config.json and model.safetensors; the config.json then gives the shape. `pooling` says what stands
    for the text: the first token (`cls`), the `last`, or the `mean`. `width` adds a linear layer to that width,
    `blocks` puts self-attention of our own over the tokens (BriVL).
    """

    kind: TextKind = "bert"
    options: dict[str, Any] = Field({})
    weights: str | None = None
    pooling: Literal["cls", "last", "mean"] = "cls"
    width: int | None = Field(None, ge=1)
    blocks: BlocksConfig | None = None


class CoAttentionConfig(Section):
    """Two streams and the bridges between them.

    `placement` lists layers in their order, `text`, `image` or `cross`, each with an optional count (`cross*5`); null
    is as many bridges as `fusion.depth` says. `order` is what a bridge does on each side: look at itself, at the other
    side, and feed forward. `shared`: both sides look at each other with the same weights (LXMERT). `width` and `heads`
    are those of the cross-attention, `image_heads` and `image_hidden` those of the image stream; null is as in
    `fusion`.
    """

    placement: list[Annotated[str, Field(pattern=r"^(text|image|cross)(\*[1-9]\d*)?$")]] | None = None
    order: tuple[Literal["self", "cross", "feed"], ...] = ("self", "cross", "feed")
    shared: bool = False
    width: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    image_heads: int | None = Field(None, ge=1)
    image_hidden: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if len(set(self.order)) != len(self.order) or "cross" not in self.order:
            raise ValueError(f"`model.fusion.co_attention.order` (={self.order}) must hold cross, and nothing twice")
        return self

    def steps(self, depth: int) -> list[str]:
        """The placement with counts written out."""
        if self.placement is None:
            return ["cross"] * depth
        counted = [item.partition("*") for item in self.placement]
        return [kind for kind, _, count in counted for _ in range(int(count or 1))]

    def image_block(self, text: BlockShape) -> BlockShape:
        return replace(text, heads=self.image_heads or text.heads, hidden=self.image_hidden or text.hidden)


class FusionConfig(BlocksConfig):
    """How the modalities meet.

    `trunk`: `joint` (one sequence of both), `co_attention` (two streams with bridges), `text_queries_image`
    (cross-attention, as in ALBEF), `encoder_decoder` (`decoder_depth` null for as many layers as the encoder),
    `first_added` (each token of either side plus the first of the other, without a layer: LightningDOT) or `none` (dual
    encoder). `pooler` makes the vector that stands for the pair: the text's `first` token, that through a `tanh` layer,
    the `product` of a ReLU layer's outputs for both sides' first tokens (ViLBERT), or both sides' tanh layers
    `concatenate`d (METER). `types` adds a learned vector per modality; `multiway` gives image tokens their own
    feed-forward and `image_on_text` adds the first image token to every text token (VL-BERT), in joint alone.
    `shared_text`: the layers in which text queries the image also encode text alone, by leaving that out (BLIP); the
    text encoder then only embeds. `weights` is null for random layers, else a local file or folder, a `package:` place,
    or `hf:USER/NAME[@REVISION]` for a repository with a model.safetensors, of a BERT as transformers keeps it or of a
    ViT as timm does, of which `first_layer` starts the trunk's first.
    """

    trunk: Trunk = "text_queries_image"
    shared_text: bool = False
    image_on_text: bool = False
    pooler: Pooler = "first"
    pooled_width: int | None = Field(None, ge=1, description="Of the product; null for the text's.")
    types: bool = False
    multiway: bool = False
    co_attention: CoAttentionConfig = CoAttentionConfig()
    decoder_depth: int | None = Field(None, ge=1)
    weights: str | None = None
    first_layer: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, values: Any) -> Any:
        """Checkpoints of before name `recompute`, which their weights do not depend on."""
        if not isinstance(values, dict) or "recompute" not in values:
            return values
        if values["recompute"]:
            raise ValueError(
                "`model.fusion.recompute` (=True) is now `engine.activation_checkpointing=[model.fusion.]`"
            )
        return {name: value for name, value in values.items() if name != "recompute"}


class ProjectionConfig(Section):
    """A layer of `hidden` units between an encoder's vector and the shared space, behind it a LayerNorm if `norm`."""

    hidden: int = Field(ge=1)
    activation: Activation = "gelu"
    norm: bool = False


class ModelConfig(Section):
    """trunk x visual embedder x text embedder.

    `embedding_dim` is the size of the shared space that both sides are projected to, null for none; `projection_bias`
    false leaves out the biases there (CLIP), `projection` puts a layer in between. `image_projection` false takes the
    image's own vector, which then must have that size (ALIGN).
    """

    image_size: int = Field(224, ge=16)
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()
    embedding_dim: int | None = Field(256, ge=8)
    projection_bias: bool = True
    projection: ProjectionConfig | None = None
    image_projection: bool = True
