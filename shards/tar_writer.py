"""Writes samples as plain USTAR with fixed owner, mode and time, and remembers where everything went."""

import hashlib
import tarfile
import zlib
from typing import Any, BinaryIO

from shards.decode import image_size
from shards.sample import Sample, array_bytes, record_json

BLOCK = 512


class TarWriter:
    """One shard in the making.

    Attributes:
        rows: What the index says of each sample, see `shards.manifest`.
        sha256: Of the bytes written so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0
        self.sha256 = hashlib.sha256()
        self.rows: list[dict[str, Any]] = []

    def add(self, sample: Sample) -> None:
        """Appends the members of one sample, which is sound (`shards.soundness`)."""
        width, height = image_size(sample.image)
        self.rows.append(
            {
                "key": sample.key,
                "extension": sample.extension,
                **self._member("image", f"{sample.key}.{sample.extension}", sample.image),
                **self._member("json", f"{sample.key}.json", record_json(sample)),
                **self._arrays(sample),
                "width": width,
                "height": height,
                "caption_words": [len(caption.split()) for caption in sample.captions],
            }
        )
        self._member("txt", f"{sample.key}.txt", sample.captions[0].encode())

    def close(self) -> None:
        """Writes the end of the archive."""
        self._write(bytes(2 * BLOCK))

    def _arrays(self, sample: Sample) -> dict[str, int]:
        row: dict[str, int] = {}
        for name, array in sample.arrays().items():
            row |= self._member(name, f"{sample.key}.{name}.npy", array_bytes(array))
        return row

    def _member(self, field: str, name: str, content: bytes) -> dict[str, int]:
        header = tarfile.TarInfo(name)
        header.size = len(content)
        self._write(header.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict"))
        offset = self.offset
        self._write(content + bytes(-len(content) % BLOCK))
        return {f"{field}_offset": offset, f"{field}_size": len(content), f"{field}_crc32": zlib.crc32(content)}

    def _write(self, content: bytes) -> None:
        self.file.write(content)
        self.sha256.update(content)
        self.offset += len(content)
