"""What a corpus has to offer: a known length, random access, and a fingerprint of what defines it."""

from typing import Protocol

from shards.sample import Identity, Sample


class Source(Protocol):
    """A finite corpus with random access. Building, streaming, fine-tuning and evaluation all read this.

    `source[i]` reads and returns one sample; it raises `shards.errors.DamagedSample` where the bytes cannot be had.
    """

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def identity(self, index: int) -> Identity:
        """Stable name of sample `index`."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 of everything that decides the samples; equal fingerprints mean equal corpora."""
        ...
