"""Do the classes that objectives predict fit what the regions of the data are called?"""

from pretrain.config import PretrainConfig
from pretrain.data.labels import UNKNOWN, RegionVocabulary
from pretrain.data.regions import read_regions
from shards.errors import UserError
from shards.sample import Sample

SHOWN = 3


def check_classes(config: PretrainConfig, vocabulary: RegionVocabulary, sample: Sample) -> None:
    """Refuses heads that are too small for the numbers they would be asked for, or that would never be asked.

    Raises:
        UserError: no file of labels, more names in it than the head has classes, a file that numbers none of the
            labels of `sample`, or a detector's distribution of another length.
    """
    read, region = config.data.regions, config.model.vision.region
    if read is None:
        return
    mrc, mra = config.objectives.mrc, config.objectives.mra
    if mrc and mrc.target == "label":
        _check_names("mrc", mrc.classes, "labels", len(vocabulary.labels), read.labels)
    if mra:
        _check_names("mra", mra.classes, "attributes", len(vocabulary.attributes), read.labels)
    found = read_regions(sample, read, region.features if region else None, vocabulary)
    if read.labels and (found.labels_K == UNKNOWN).all():
        names = ", ".join(sorted({part.label for part in sample.regions})[:SHOWN])
        raise UserError(f"`data.regions.labels` (={read.labels}) numbers none of the labels of {sample.key}: {names}")


def _check_names(objective: str, classes: int, what: str, names: int, file: str | None) -> None:
    if file is None:
        raise UserError(f"`objectives.{objective}` asks for {what}, so `data.regions.labels` must name their file")
    if names > classes:
        raise UserError(
            f"`objectives.{objective}.classes` (={classes}) must be at least the number of {what} in "
            f"`data.regions.labels` (={names})"
        )
