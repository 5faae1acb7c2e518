"""The loaders of the field on the photos of `photos.py`, each used as its own documentation shows.

webdataset and open_clip read the tars that `shards build` writes; MosaicML's streaming and litData get the same bytes
in their own formats. What to install:

    pip install 'duostream[benchmark]'
    pip install mosaicml-streaming==0.13.0 --no-deps      # its pins of numpy and transformers exclude ours; it runs
    pip install python-snappy xxhash zstd Brotli catalogue
"""

import argparse
import io
import json
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import webdataset
from photos import Held
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF
from webdataset.tariterators import tar_file_expander

from pretrain.data.transforms import Box
from shards.write import build_shards

SIZE = 224
SAMPLES_PER_SHARD = 592
"""64 MB of the photos, as in the chunks of the peers that have their own format."""
SCALE = (0.9, 1.0)
"""The smallest and largest share of the area that a crop keeps: open_clip's default."""
BICUBIC = v2.InterpolationMode.BICUBIC
CROP_AND_FLIP = (v2.RandomResizedCrop(SIZE, SCALE, interpolation=BICUBIC), v2.RandomHorizontalFlip())
FROM_PIL = v2.Compose([*CROP_AND_FLIP, v2.PILToTensor()])
FROM_TENSOR = v2.Compose(CROP_AND_FLIP)

Raw = Iterable[Sequence[bytes]]
"""Batches of encoded images; their captions were read, too."""
Pixels = Iterable[Tensor]
"""Batches of images."""


@dataclass(frozen=True)
class Peer:
    """A loader of the field.

    Attributes:
        package: What its version is asked of.
        write: Puts the photos where the others find them.
        pixels: (folder, workers, batch) -> one epoch of batches, shuffled, cropped, flipped.
        view: (JPEG, box) -> the box at SIZE x SIZE as it decodes and resizes it, uint8 [S, S, 3].
        raw: (folder, workers, batch) -> one epoch of encoded images, shuffled; one by one in this process where there
            are no workers. None where it has no such way.
    """

    name: str
    package: str
    write: Callable[[Held, Path], None]
    pixels: Callable[[Path, int, int], Pixels]
    view: Callable[[bytes, Box], np.ndarray]
    raw: Callable[[Path, int, int], Raw] | None = None


def reference(image: bytes, box: Box) -> np.ndarray:
    """Pillow from end to end: decoded whole, cut, resized; uint8 [S, S, 3]."""
    cut = (
        Image.open(io.BytesIO(image))
        .convert("RGB")
        .crop((box.left, box.top, box.left + box.width, box.top + box.height))
    )
    return np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _nothing(held: Held, folder: Path) -> None:
    """It reads the tars of `shards build`."""


def _tars(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar")))


# webdataset with torchvision


def _webdataset(folder: Path) -> webdataset.WebDataset:
    tars = _tars(folder)
    return webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000)


def webdataset_pixels(folder: Path, workers: int, batch: int) -> Pixels:
    samples = _webdataset(folder).decode("pil").to_tuple("jpg", "txt").map_tuple(FROM_PIL, str)
    loader = webdataset.WebLoader(samples.batched(batch, partial=False), batch_size=None, num_workers=workers)
    return (pixels for pixels, _ in loader)


def webdataset_raw(folder: Path, workers: int, batch: int) -> Raw:
    samples = _webdataset(folder).to_tuple("jpg", "txt").map_tuple(bytes, bytes.decode)
    if not workers:
        return ([image] for image, _ in samples)
    loader = webdataset.WebLoader(samples.batched(batch, partial=False), batch_size=None, num_workers=workers)
    return (images for images, _ in loader)


# open_clip, its training package


def open_clip_pixels(folder: Path, workers: int, batch: int) -> Pixels:
    import open_clip_train.data
    from open_clip import image_transform

    # webdataset 1 marks the end of each shard, which open_clip 3.3.0 takes for a member.
    open_clip_train.data.tar_file_expander = partial(tar_file_expander, eof_value=None)
    tars = _tars(folder)
    arguments = SimpleNamespace(
        train_data=f"{folder}/shard-{{000000..{len(tars) - 1:06d}}}.tar",
        train_num_samples=json.loads((folder / "manifest.json").read_bytes())["plan"]["samples"],
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=batch,
        workers=workers,
        world_size=1,
        seed=0,
    )
    no_words = torch.zeros(1, 77, dtype=torch.int64)  # What a tokenizer costs is not measured.
    found = open_clip_train.data.get_wds_dataset(
        arguments, image_transform(SIZE, is_train=True), True, floor=True, tokenizer=lambda text: no_words
    )
    return (pixels for pixels, _ in found.dataloader)


# MosaicML's streaming


def streaming_write(held: Held, folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"image": "bytes", "caption": "str"}) as writer:
        for sample in held.samples:
            writer.write({"image": sample.image, "caption": sample.captions[0]})


def _streaming(folder: Path, batch: int, transform: Callable[[bytes], Any]) -> Any:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Photos(StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return transform(sample["image"]), sample["caption"]

    return Photos(local=str(folder), shuffle=True, batch_size=batch)


def streaming_pixels(folder: Path, workers: int, batch: int) -> Pixels:
    from streaming import StreamingDataLoader

    photos = _streaming(folder, batch, lambda image: FROM_PIL(Image.open(io.BytesIO(image)).convert("RGB")))
    loader = StreamingDataLoader(photos, batch_size=batch, num_workers=workers, drop_last=True)
    return (pixels for pixels, _ in loader)


def streaming_raw(folder: Path, workers: int, batch: int) -> Raw:
    from streaming import StreamingDataLoader

    photos = _streaming(folder, batch, bytes)
    if not workers:
        return ([image] for image, _ in photos)
    loader = StreamingDataLoader(photos, batch_size=batch, num_workers=workers, drop_last=True)
    return (images for images, _ in loader)


# litData


def litdata_write(held: Held, folder: Path) -> None:
    """Its type for JPEG, which its reader decodes with torchvision, and the same samples as plain bytes."""
    import litdata
    from litdata.types import Jpeg

    def typed(index: int) -> dict[str, Any]:
        return {"image": Jpeg(bytes=held[index].image), "caption": held[index].captions[0]}

    def plain(index: int) -> dict[str, Any]:
        return {"image": held[index].image, "caption": held[index].captions[0]}

    for name, function in (("typed", typed), ("plain", plain)):
        shutil.rmtree(folder / name, ignore_errors=True)
        litdata.optimize(
            function, list(range(len(held))), str(folder / name), chunk_bytes="64MB", num_workers=1, start_method="fork"
        )


def litdata_pixels(folder: Path, workers: int, batch: int) -> Pixels:
    from litdata import StreamingDataLoader, StreamingDataset

    def cut(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "image": FROM_TENSOR(sample["image"])}

    photos = StreamingDataset(str(folder / "typed"), shuffle=True, drop_last=True, transform=cut)
    loader = StreamingDataLoader(photos, batch_size=batch, num_workers=workers, drop_last=True)
    return (found["image"] for found in loader)


def litdata_raw(folder: Path, workers: int, batch: int) -> Raw:
    from litdata import StreamingDataLoader, StreamingDataset

    photos = StreamingDataset(str(folder / "plain"), shuffle=True, drop_last=True)
    if not workers:
        return ([sample["image"]] for sample in photos)
    loader = StreamingDataLoader(photos, batch_size=batch, num_workers=workers, drop_last=True)
    return (found["image"] for found in loader)


def _torchvision_view(image: bytes, box: Box) -> np.ndarray:
    pixels_CHW = decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8))
    return TF.resized_crop(pixels_CHW, *box, [SIZE, SIZE], BICUBIC).permute(1, 2, 0).numpy()


def _pil_view(image: bytes, box: Box) -> np.ndarray:
    opened = Image.open(io.BytesIO(image)).convert("RGB")
    return np.asarray(TF.resized_crop(opened, *box, [SIZE, SIZE], BICUBIC))


PEERS = (
    Peer("webdataset + torchvision", "webdataset", _nothing, webdataset_pixels, _pil_view, webdataset_raw),
    Peer("open_clip", "open_clip_torch", _nothing, open_clip_pixels, _pil_view),
    Peer("streaming", "mosaicml-streaming", streaming_write, streaming_pixels, _pil_view, streaming_raw),
    Peer("litData", "litdata", litdata_write, litdata_pixels, _torchvision_view, litdata_raw),
)


def prepare(held: Held, folder: Path) -> None:
    """The photos in every arm's form, where they are not there yet."""
    if not (folder / "ours").exists():
        build_shards(held, folder / "ours", samples_per_shard=SAMPLES_PER_SHARD)
    for peer in PEERS:
        if not (folder / peer.name).exists():
            peer.write(held, folder / peer.name)


def place(folder: Path, name: str) -> Path:
    """Where an arm finds its data."""
    return folder / (name if (folder / name).exists() else "ours")


def options(doc: str | None, photos: int) -> argparse.ArgumentParser:
    """What the scripts that compare loaders are told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=photos)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="keeps the data for the next time")
    return parser


def start(arguments: argparse.Namespace, compare: Callable[[argparse.Namespace, Path], None]) -> None:
    """Compares on data in the folder that was named, or in one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, arguments.data or Path(folder))


def span(ratios: Sequence[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def versions(*packages: str) -> str:
    """Of Python, of `packages` and of the peers."""
    names = (*packages, *(peer.package for peer in PEERS))
    return f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}"
