"""Images per second from shards on disk to a batch of 224 x 224 pixels in the consumer, against the field's loaders.

    python benchmarks/data/decode.py [--photos 2048] [--workers 2] [--batch 64] [--rounds 5] [--data FOLDER]

Every arm decodes the same JPEGs, cuts a random 90 to 100 % of the area, resizes with bicubic interpolation and
antialiasing, and hands batches from worker processes to this one; `peers.py` says what to install. All but open_clip's
loader, which has no flip, flip half of them.
All give uint8 but open_clip's loader, which normalises to float32 in the workers, as it is used; ours leaves that to
the device. The arm `ours, normalised` does it here, on the CPU, behind the loader. Prints the median ratio over the
rounds of the speeds, the range, the same for the CPU time (which other loads of the machine disturb less), and how far
the pixels of one view are from Pillow's.
"""

import argparse
import gc
import itertools
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peers import PEERS, SCALE, SIZE, Pixels, options, place, prepare, reference, span, start, versions
from photos import Held, describe, photos
from torch import Tensor

from pretrain.config import AugmentConfig
from pretrain.data.transforms import Box, crop, random_box, stack_pixels, training_pixels
from shards.decode import decode_image, resize
from shards.stream import ShardStream, StreamedSample

AUGMENT = AugmentConfig(crop_scale=SCALE[0], flip=True)
WARM_UP = 4
"""Batches that are not timed: what the workers had ready when the first was asked for."""
MEAN, STD = (
    torch.tensor([0.48145466, 0.4578275, 0.40821073]) * 255,
    torch.tensor([0.26862954, 0.26130258, 0.27577711]) * 255,
)


def _item(item: StreamedSample) -> tuple[Tensor, str]:
    return training_pixels(item.sample, SIZE, AUGMENT, item.rng()), item.sample.captions[0]


def _batch(items: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    return stack_pixels([pixels for pixels, _ in items]), [caption for _, caption in items]


def ours(folder: Path, workers: int, batch: int) -> Pixels:
    stream = ShardStream(folder, batch, workers=workers, transform=_item, collate=_batch)
    return (pixels for pixels, _ in stream.batches(stream.mixture.samples // batch))


def ours_normalised(folder: Path, workers: int, batch: int) -> Pixels:
    return (pixels_BHWC.float().sub_(MEAN).div_(STD) for pixels_BHWC in ours(folder, workers, batch))


def _our_view(image: bytes, box: Box) -> np.ndarray:
    return resize(crop(decode_image(image, "jpg"), box), SIZE).permute(1, 2, 0).numpy()


class Cost(NamedTuple):
    """Images per second behind the first batches, and milliseconds of CPU per image, starting and ending included."""

    rate: float
    cpu: float


def measure(arm: Callable[[Path, int, int], Pixels], folder: Path, workers: int, batch: int) -> Cost:
    before = _cpu_seconds()
    batches = iter(arm(folder, workers, batch))
    for pixels in itertools.islice(batches, WARM_UP):
        assert pixels.shape[0] == batch
    start, count = time.perf_counter(), 0
    for pixels in batches:
        count += len(pixels)
    rate = count / (time.perf_counter() - start)
    del batches
    gc.collect()  # Workers end with their loader; only then is their time known.
    return Cost(rate, 1000 * (_cpu_seconds() - before) / (count + WARM_UP * batch))


def _cpu_seconds() -> float:
    """Of this process and of all that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def differences(held: Held, view: Callable[[bytes, Box], np.ndarray]) -> tuple[float, int]:
    """Mean and largest difference of a channel from Pillow's, over a view of each of 64 photos."""
    rng = np.random.default_rng(0)
    found = []
    for sample in held.samples[:64]:
        box = random_box(*decode_image(sample.image, "jpg").shape[:2], SCALE[0], rng)
        found.append(np.abs(view(sample.image, box).astype(int) - reference(sample.image, box)))
    return float(np.mean(found)), int(np.max(found))


def main() -> None:
    start(options(__doc__, photos=2048).parse_args(), compare)


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    held = photos(arguments.photos)
    prepare(held, folder)
    print(versions("torch", "torchvision", "simplejpeg", "pillow"))
    print(f"{describe(held)}; batches of {arguments.batch}, {arguments.workers} workers")
    arms = {"ours": ours, "ours, normalised": ours_normalised, **{peer.name: peer.pixels for peer in PEERS}}
    views = {"ours": _our_view, "ours, normalised": _our_view, **{peer.name: peer.view for peer in PEERS}}
    places = {name: place(folder, name) for name in arms}
    rounds: list[dict[str, Cost]] = []
    for _ in range(arguments.rounds):
        rounds.append(
            {name: measure(arm, places[name], arguments.workers, arguments.batch) for name, arm in arms.items()}
        )
        print("   ".join(f"{name} {cost.rate:.0f}/s" for name, cost in rounds[-1].items()), flush=True)
    for name in arms:
        mean, most = differences(held, views[name])
        speed, cpu = (statistics.median(values) for values in zip(*(costs[name] for costs in rounds), strict=True))
        pixels = f"pixels from Pillow's: mean {mean:.4f}, largest {most}"
        print(f"{name:26s} {speed:7.0f} images/s   {cpu:.2f} ms CPU an image   {pixels}")
    for own, peer in itertools.product(("ours", "ours, normalised"), PEERS):
        speeds = span([costs[own].rate / costs[peer.name].rate for costs in rounds])
        savings = span([costs[peer.name].cpu / costs[own].cpu for costs in rounds])
        print(f"{own} / {peer.name} {version(peer.package)}: speed {speeds}, CPU saved {savings}")


if __name__ == "__main__":
    main()
