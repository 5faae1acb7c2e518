"""Which objectives can be trained with which model, data and engine."""

from pretrain.models.config import FusionConfig
from pretrain.objectives.config import ObjectivesConfig

READS_TOWERS = ("itc", "bank", "triplet")
"""They need no trunk."""
READS_IMAGE = ("mrf", "mrc", "mra", "wra")
"""They read image tokens that have seen the text."""
HIDES_REGIONS = ("mrf", "mrc", "mra")
MIXES_IMAGE = ("joint", "co_attention")
"""Trunks in which image tokens see the text."""


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
    if objectives.seq2seq and trunk != "joint":
        return f"`objectives.seq2seq` needs its attention mask, so `model.fusion.trunk` (={trunk}) must be joint"
    return None


def missing_regions(objectives: ObjectivesConfig, hide: float | None) -> str | None:
    """One sentence on an objective that reads hidden regions where the data hides none (`hide` 0, None without any)."""
    found = [name for name in HIDES_REGIONS if name in objectives.chosen]
    if objectives.mlm and objectives.mlm.image == "masked":
        found.append("mlm.image")
    if found and not hide:
        return f"`objectives.{found[0]}` reads hidden regions, so `data.regions.hide` must be more than 0"
    return None
