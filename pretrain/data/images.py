"""Images as a trained model sees them at evaluation: no augmentation, nothing hidden."""

from collections.abc import Sequence

from pretrain.config import PretrainConfig
from pretrain.data.labels import RegionVocabulary
from pretrain.data.regions import collate_regions, read_regions
from pretrain.data.shapes import pad_pixels
from pretrain.data.transforms import evaluation_pixels, stack_pixels
from pretrain.models.interface import ImageInput
from shards.sample import Sample


def evaluation_images(samples: Sequence[Sample], config: PretrainConfig) -> ImageInput:
    """Pixels or regions, whichever the model of `config` reads.

    Raises:
        UserError: a sample without the regions that the model reads.
    """
    region, read = config.model.vision.region, config.data.regions
    if region is None or read is None:
        shape = config.data.image_shape
        pixels = [evaluation_pixels(sample, shape or config.model.image_size) for sample in samples]
        if shape is None:
            return ImageInput(stack_pixels(pixels))
        pixels_BHWC, sizes_B2 = pad_pixels(pixels)
        return ImageInput(pixels_BHWC, sizes_B2=sizes_B2)
    named = RegionVocabulary.read(read.labels) if read.classes and read.labels else RegionVocabulary((), ())
    fields = collate_regions([read_regions(sample, read, region.features, named) for sample in samples])
    return ImageInput(
        features_BKF=fields["region_features_BKF"],
        boxes_BK4=fields["region_boxes_BK4"],
        mask_BK=fields["region_mask_BK"],
        probabilities_BKC=fields.get("region_probabilities_BKC"),
    )
