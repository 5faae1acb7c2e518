"""Which objectives are trained, and how each is set."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.data.masking import Unit
from pretrain.settings import Section


class ObjectiveConfig(Section):
    """`weight` is the factor on the loss."""

    weight: float = Field(1.0, gt=0)


SimilarityKind = Literal["pooled", "tokens", "queries"]


class ITCConfig(ObjectiveConfig):
    """Image-text contrast (CLIP, arXiv:2103.00020; multi-positive targets by group).

    `similarity`: of the `pooled` vectors, the token-wise maximum of all `tokens` (FILIP), or the maximum over the
    image's tokens as `queries` (BLIP-2). `loss`: `softmax`, or the `sigmoid` of SigLIP, which starts at `bias`.
    `temperature` is learned within `limits`. `targets` `distilled` and a `queue` of so many features (0: none) read
    the momentum towers (`objectives.momentum`). `regions` is the weight of the same loss between the phrases of regions
    and those parts of the image (X-VLM, arXiv:2111.08276), 0 for none.
    """

    similarity: SimilarityKind = "pooled"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = Field(0.07, gt=0)
    limits: tuple[Annotated[float, Field(gt=0)], float] = (0.01, 100.0)
    bias: float = -10.0
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    targets: Literal["hard", "distilled"] = "hard"
    queue: int = Field(0, ge=0)
    regions: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        plain = self.targets == "hard" and not self.queue
        if self.loss == "sigmoid" and not (self.similarity == "pooled" and plain and not self.label_smoothing):
            raise ValueError(
                "`objectives.itc.loss` (=sigmoid) takes pooled similarities, hard targets, no queue and no smoothing"
            )
        if self.similarity != "pooled" and not plain:
            raise ValueError(f"`objectives.itc.similarity` (={self.similarity}) takes hard targets and no queue")
        if self.regions and (self.similarity != "pooled" or self.loss != "softmax" or not plain):
            raise ValueError(
                f"`objectives.itc.regions` (={self.regions}) takes pooled similarities, softmax, hard targets, no queue"
            )
        return self


class BankConfig(ObjectiveConfig):
    """Contrast of images with all texts of the corpus, which the frozen text encoder reads once (LiT,
    arXiv:2111.07991). Each step draws one text of each `data.group_by`.

    `temperature` is learned within `limits`. `soft` of the target goes to texts that are alike in the frozen features,
    by a softmax at `soft_temperature`; `dropout` is of those features; `text_to_image` is the factor on the loss of
    texts over the images of the batch.
    """

    temperature: float = Field(0.05, gt=0)
    limits: tuple[Annotated[float, Field(gt=0)], float] = (0.01, 100.0)
    soft: float = Field(0.0, ge=0, lt=1)
    soft_temperature: float = Field(0.05, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    text_to_image: float = Field(0.5, ge=0)


class RankingConfig(Section):
    """The true pair against false ones, all judged by the matching head's row for a match.

    Each pair meets `texts` wrong texts and `images` wrong images of the global batch, drawn evenly and without
    repetition, and `similar` texts of images that look alike (ViLBERT's hard captions). With `mined_from` as many are
    scored without gradient first, and the hardest of them kept (UNITER). `margin` is of `margin` and `circle`, `scale`
    of `circle`. `binary` is the weight of yes or no beside it (ViLT).
    """

    loss: Literal["softmax", "margin", "circle"] = "softmax"
    texts: int = Field(15, ge=0)
    images: int = Field(0, ge=0)
    similar: int = Field(0, ge=0)
    mined_from: int | None = Field(None, ge=1)
    margin: float = Field(0.2, ge=0, le=1)
    scale: float = Field(32.0, gt=0)
    binary: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _meets_something(self) -> Self:
        if not self.texts + self.images + self.similar:
            raise ValueError("`objectives.itm.ranking` must draw at least one of `texts`, `images` and `similar`")
        if self.mined_from is not None and self.mined_from < max(self.texts, self.images):
            raise ValueError(
                f"`objectives.itm.ranking.mined_from` (={self.mined_from}) must be at least `texts` (={self.texts}) "
                f"and `images` (={self.images}), which are kept of it"
            )
        return self


class ITMConfig(ObjectiveConfig):
    """Image-text matching.

    `ranking` trains the choice of the true pair among several, in place of yes or no for each. Without it: `negatives`:
    each pair meets a wrong text and a wrong image, `hard` ones by the similarity of contrast (ALBEF, arXiv:2107.07651)
    or `random` ones; or its text is replaced with probability one half (`swap`, as in ViLBERT). They come from the
    `global` batch, or from the rank's own part (`local`: no gathering, but the result depends on the number of ranks).
    `head` is one `linear` layer or two (`mlp`, X-VLM). `regions` is the weight of the same loss on regions and their
    phrases, 0 for none.
    """

    negatives: Literal["hard", "random", "swap"] = "hard"
    pool: Literal["global", "local"] = "global"
    head: Literal["linear", "mlp"] = "linear"
    regions: float = Field(0.0, ge=0)
    ranking: RankingConfig | None = None

    @model_validator(mode="after")
    def _swap_is_global(self) -> Self:
        if self.negatives == "swap" and self.regions:
            raise ValueError(f"`objectives.itm.regions` (={self.regions}) takes hard or random negatives, not swap")
        if self.negatives == "swap" and self.pool == "local":
            raise ValueError("`objectives.itm.pool` (=local) is for hard and random negatives; texts swap globally")
        return self


class TripletConfig(ObjectiveConfig):
    """The hinge of VSE++ (arXiv:1707.05612) on cosines: of the `hardest` wrong item of the batch, or of all."""

    margin: float = Field(0.2, gt=0, le=2)
    hardest: bool = True


class MLMConfig(ObjectiveConfig):
    """Masked language modelling on the fused features (BERT, arXiv:1810.04805: 80 % mask, 10 % random, 10 % kept).

    `unit` is what is hidden together: single tokens, whole words (ViLT) or spans of words (SpanBERT).
    `second_probability` is the chance of tokens of the second segment (tags), null for `probability`. `image` `masked`
    hides regions at the same time (ViLBERT, LXMERT). `targets` `distilled` follow the momentum towers. `tied` false
    predicts with a matrix other than the words' embedding (ViLT, METER). `eps` is of the head's LayerNorm, null for the
    trunk's. `regions` is the weight of the same loss on the phrases of regions, which see those parts of the image
    alone, 0 for none.
    """

    probability: float = Field(0.15, gt=0, lt=1)
    second_probability: float | None = Field(None, ge=0, lt=1)
    unit: Unit = "token"
    image: Literal["clean", "masked"] = "clean"
    targets: Literal["hard", "distilled"] = "hard"
    tied: bool = True
    eps: float | None = Field(None, gt=0)
    regions: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _regions_have_hard_targets(self) -> Self:
        if self.regions and self.targets != "hard":
            raise ValueError(f"`objectives.mlm.regions` (={self.regions}) takes hard targets, not {self.targets}")
        return self


class Seq2SeqConfig(ObjectiveConfig):
    """The hidden words of `mlm`, seeing the image and the words before them alone (Unified-VLP, arXiv:1909.11059)."""


class LMConfig(ObjectiveConfig):
    """Writing the text from left to right: all of it (`causal`: captioning, BLIP, arXiv:2201.12086), or what follows a
    random `prefix` (SimVLM, arXiv:2108.10904)."""

    attention: Literal["causal", "prefix"] = "causal"
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class MRFConfig(ObjectiveConfig):
    """Masked regions: regression of the hidden features (UNITER, arXiv:1909.11740; smooth L1: LXMERT)."""

    error: Literal["l2", "smooth_l1"] = "l2"
    text: Literal["clean", "masked"] = "clean"


class MRCConfig(ObjectiveConfig):
    """Masked regions: their class, as the detector's `label` or its `distribution` over `classes` classes."""

    classes: int = Field(ge=2)
    target: Literal["label", "distribution"] = "label"
    text: Literal["clean", "masked"] = "clean"


class MRAConfig(ObjectiveConfig):
    """Masked regions: their attributes, of which there are `classes` (LXMERT, arXiv:1908.07490)."""

    classes: int = Field(ge=2)
    text: Literal["clean", "masked"] = "clean"


class WRAConfig(ObjectiveConfig):
    """Alignment of words with regions or patches by optimal transport (UNITER; ViLT).

    They shall be near in true pairs and far in swapped ones. `beta` and `iterations` are the solver's.
    """

    weight: float = Field(0.1, gt=0)
    beta: float = Field(0.5, gt=0)
    iterations: int = Field(50, ge=1)


class PollutionConfig(ObjectiveConfig):
    """Is the text of this image? Texts are polluted with those of other images when the batch is made.

    `second` replaces the second segment with probability `probability`: tags (OSCAR, arXiv:2004.06165) or a second
    caption (VisualBERT, arXiv:1908.03557). `caption` replaces the caption and leaves the image its own tags (OSCAR's
    fine-tuning). `three_way` replaces the caption or the tags, half of the time each (VinVL, arXiv:2101.00529). `text`
    is what is judged: the `clean` text, or the `masked` one, in the forward that predicts its words too, as those
    systems do.
    """

    kind: Literal["second", "caption", "three_way"] = "second"
    probability: float = Field(0.5, gt=0, lt=1)
    text: Literal["clean", "masked"] = "clean"

    @property
    def classes(self) -> int:
        return 3 if self.kind == "three_way" else 2


class BoxConfig(ObjectiveConfig):
    """The box of a region from its phrase, L1 and generalised IoU (X-VLM, arXiv:2111.08276)."""


class MomentumConfig(Section):
    """Slow copies of the towers, `decay` of which stays at each step (ALBEF, arXiv:2107.07651).

    `alpha` is their share in distilled targets, reached after growing for `ramp_steps`.
    """

    decay: float = Field(0.995, ge=0, lt=1)
    alpha: float = Field(0.4, ge=0, le=1)
    ramp_steps: int = Field(0, ge=0)


class ObjectivesConfig(Section):
    """Which losses are trained; null leaves one out.

    `policy`: every step trains the `sum` of all, or `one` entry of `mix`, drawn for all ranks alike. `mix` gives the
    shares of the steps; `a+b` trains two objectives in the same step (UNITER: `{itm+wra: 9, mlm: 12, mrf: 6, mrc: 6}`).
    """

    policy: Literal["sum", "one"] = "sum"
    mix: dict[str, Annotated[float, Field(gt=0)]] = Field({})
    momentum: MomentumConfig | None = None
    itc: ITCConfig | None = None
    bank: BankConfig | None = None
    triplet: TripletConfig | None = None
    itm: ITMConfig | None = None
    mlm: MLMConfig | None = None
    seq2seq: Seq2SeqConfig | None = None
    lm: LMConfig | None = None
    mrf: MRFConfig | None = None
    mrc: MRCConfig | None = None
    mra: MRAConfig | None = None
    wra: WRAConfig | None = None
    pollution: PollutionConfig | None = None
    box: BoxConfig | None = None

    @property
    def chosen(self) -> dict[str, ObjectiveConfig]:
        """The objectives that are not null, by name."""
        return {name: config for name, config in self if isinstance(config, ObjectiveConfig)}

    @property
    def phrases(self) -> str | None:
        """The first setting that reads the phrases of regions, None where none does."""
        readers = [f"objectives.{n}.regions" for n, one in self.chosen.items() if getattr(one, "regions", 0)]
        return "objectives.box" if self.box else next(iter(readers), None)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        followers = [n for n in ("itc", "mlm") if _follows(getattr(self, n))]
        if followers and not self.momentum:
            raise ValueError(f"`objectives.{followers[0]}` reads momentum towers, so `objectives.momentum` must be set")
        if self.momentum and not followers:
            raise ValueError("`objectives.momentum` is read by none: set `targets=distilled` or a queue")
        if self.seq2seq and not self.mlm:
            raise ValueError(
                "`objectives.seq2seq` predicts the words that `objectives.mlm` hides, which must be set too"
            )
        if (self.policy == "one") != bool(self.mix):
            raise ValueError(f"`objectives.mix` (={self.mix}) must name shares if, and only if, `policy` is `one`")
        mixed = {name for entry in self.mix for name in entry.split("+")}
        if self.mix and (different := sorted(mixed ^ self.chosen.keys())):
            raise ValueError(
                f"`objectives.mix` must name the objectives that are set and no others, not {different[0]}"
            )
        if self.pollution and (clash := [n for n in ("itc", "itm", "lm") if getattr(self, n)]):
            raise ValueError(
                f"`objectives.pollution` changes texts, so `objectives.{clash[0]}` cannot be trained with it"
            )
        return self


def _follows(config: ITCConfig | MLMConfig | None) -> bool:
    return config is not None and (
        config.targets == "distilled" or (isinstance(config, ITCConfig) and config.queue > 0)
    )
