"""Which objectives can be trained with which model, data and engine."""

from pretrain.models.config import FusionConfig, VisionConfig
from pretrain.objectives.config import ObjectivesConfig

READS_TOWERS = ("itc", "bank", "triplet")
"""They need no trunk."""
READS_IMAGE = ("mrf", "mrc", "mra", "wra")
"""They read image tokens that have seen the text."""
HIDES_REGIONS = ("mrf", "mrc", "mra")
PAIRS_REGIONS = ("itc", "itm", "mlm")
MIXES_IMAGE = ("joint", "co_attention", "first_added")
"""Trunks in which image tokens see the text."""
WRITES = {"joint": ("causal", "prefix"), "encoder_decoder": ("causal", "prefix"), "text_queries_image": ("causal",)}
"""Trunks that can write a text from left to right, and what they may be given of it."""


def misfit(objectives: ObjectivesConfig, fusion: FusionConfig) -> str | None:
    """One sentence on the first objective that the trunk cannot serve; None where all fit."""
    trunk, fused = fusion.trunk, [name for name in objectives.chosen if name not in READS_TOWERS]
    if trunk == "none" and fused:
        return f"`objectives.{fused[0]}` reads fused features, so `model.fusion.trunk` must not be `none`"
    if trunk not in MIXES_IMAGE and (found := [name for name in READS_IMAGE if name in fused]):
        return (
            f"`objectives.{found[0]}` reads image tokens that have seen the text, so `model.fusion.trunk` (={trunk}) "
            f"must be one of {', '.join(MIXES_IMAGE)}"
        )
    if objectives.lm and objectives.lm.attention not in WRITES.get(trunk, ()):
        return f"`objectives.lm.attention` (={objectives.lm.attention}) is nothing that `{trunk}` can do"
    if objectives.seq2seq and trunk != "joint":
        return f"`objectives.seq2seq` needs its attention mask, so `model.fusion.trunk` (={trunk}) must be joint"
    return None


def no_grid(objectives: ObjectivesConfig, vision: VisionConfig, square: bool) -> str | None:
    """One sentence where regions of the image shall be compared with phrases, but its tokens are no square grid.

    Args:
        square: Whether all images are squares.
    """
    name = next((name for name in PAIRS_REGIONS if getattr(getattr(objectives, name), "regions", 0)), None)
    cut = vision.region or vision.grids or vision.subset or vision.width or vision.tokens == "pooled"
    if name is None or (square and not cut and not (vision.patch and vision.patch.subset)):
        return None
    return (
        f"`objectives.{name}.regions` picks image tokens by their place, so `model.vision` must yield the whole grid "
        "of a square image, at its own width"
    )


def missing_regions(objectives: ObjectivesConfig, hide: float | None, classes: int) -> str | None:
    """One sentence on an objective that reads what the data does not give.

    Args:
        hide: Share of regions that the data hides, None without any.
        classes: Length of the detector's distribution, 0 without any.
    """
    mrc = objectives.mrc
    if mrc and mrc.target == "distribution" and mrc.classes != classes:
        return (
            f"`objectives.mrc.classes` (={mrc.classes}) must be `data.regions.classes` (={classes}), of which it "
            "predicts the distribution"
        )
    found = [name for name in HIDES_REGIONS if name in objectives.chosen]
    if objectives.mlm and objectives.mlm.image == "masked":
        found.append("mlm.image")
    if found and not hide:
        return f"`objectives.{found[0]}` reads hidden regions, so `data.regions.hide` must be more than 0"
    return None
