"""The rank of every query, kept beside a results file: what the paired comparison of two checkpoints reads.

`NAME.json` has `NAME.ranks.npz` beside it, a plain numpy archive of unsigned integers (about 60 KB for COCO 5K), and
names its sha256.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune.recall import Indices, Ranks
from shards.errors import UserError

FIELDS = ("i2t_optimistic", "i2t_pessimistic", "t2i_optimistic", "t2i_pessimistic", "image_T")


@dataclass(frozen=True)
class QueryRanks:
    """Ranks of the images [I] and of the texts [T], and the image of each text, int64 [T]; images fold by fold."""

    i2t: Ranks
    t2i: Ranks
    image_T: Indices

    def to_bytes(self) -> bytes:
        """The archive; equal ranks give equal bytes."""
        target = io.BytesIO()
        arrays = (self.i2t.optimistic, self.i2t.pessimistic, self.t2i.optimistic, self.t2i.pessimistic, self.image_T)
        named = {name: array.astype(np.uint32) for name, array in zip(FIELDS, arrays, strict=True)}
        np.savez_compressed(target, allow_pickle=False, **named)
        return target.getvalue()


def ranks_path(results: Path) -> Path:
    """results.json -> results.ranks.npz."""
    return results.with_suffix(".ranks.npz")


def digest(content: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(content).hexdigest()


def read_ranks(results: Path, expected: str) -> QueryRanks:
    """The ranks beside a results file.

    Args:
        expected: The sha256 that the results name.

    Raises:
        UserError: they are missing or are not those of this file.
    """
    file = ranks_path(results)
    if not file.is_file():
        raise UserError(f"`ranks` (={file}) is not there: `finetune evaluate` writes it beside {results.name}")
    content = file.read_bytes()
    if digest(content) != expected:
        raise UserError(f"`ranks` (={file}) is not the file that {results.name} was written with")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = [archive[name].astype(np.int64) for name in FIELDS]
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"`ranks` (={file}) is not an archive of ranks: {error}") from None
    return QueryRanks(Ranks(arrays[0], arrays[1]), Ranks(arrays[2], arrays[3]), arrays[4])
