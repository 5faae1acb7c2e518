"""What the data tells a plan, where it is here already: nothing is fetched."""

from dataclasses import dataclass
from pathlib import Path

from pretrain.bank import bank_texts
from pretrain.config import PretrainConfig
from pretrain.data.parts import open_parts
from pretrain.data.tokenizer import Tokenizer
from pretrain.places import is_here
from shards.errors import UserError
from shards.manifest import read_manifest


@dataclass(frozen=True)
class Shards:
    """Of all parts of a mixture together."""

    count: int
    samples: int
    bytes: int

    @property
    def bytes_per_sample(self) -> float:
        return self.bytes / max(1, self.samples)


@dataclass(frozen=True)
class Corpus:
    """What the data decides of a run's cost.

    Attributes:
        vocabulary: Tokens of the tokenizer.
        bank: Texts and groups that `objectives.bank` holds.
        shards: None where that is not known.
    """

    vocabulary: int
    bank: tuple[int, int] = (0, 0)
    shards: int | None = None


def read_vocabulary(config: PretrainConfig, given: int | None) -> int:
    """Tokens: as given, of the tokenizer if it is here, or of the published system.

    Raises:
        UserError: none of these.
    """
    place = config.data.tokenizer
    if given:
        return given
    if place and (place.startswith("package:") or is_here("data.tokenizer", place)):
        return len(Tokenizer(place))
    if config.system:
        return config.system.vocabulary
    raise UserError(f"`data.tokenizer` (={place}) is not here: say how many tokens it has with --vocabulary")


def read_bank(config: PretrainConfig, given: tuple[int, int] | None) -> tuple[int, int]:
    """Texts and groups of `objectives.bank`: as given, or counted as the bank reads them; none without a bank.

    Raises:
        UserError: the shards are not here.
    """
    if config.objectives.bank is None:
        return 0, 0
    if given:
        return given
    shards = config.data.shards
    places = [shards] if isinstance(shards, str) else [part.place for part in shards]
    if not all(place and Path(place).is_dir() for place in places):
        raise UserError(
            f"`data.shards` (={shards}) is not here: say how many texts and groups `objectives.bank` holds with --bank"
        )
    found = set(bank_texts(config, Tokenizer(config.data.tokenizer), [source for source, _ in open_parts(config.data)]))
    return len(found), len({group for group, _ in found})


def read_shards(config: PretrainConfig) -> Shards | None:
    """Counted by their manifests; None where any part is not on this machine."""
    given = config.data.shards
    places = [given] if isinstance(given, str) else [part.place for part in given]
    folders = [Path(place) for place in places if place]
    if not folders or not all(folder.is_dir() for folder in folders):
        return None
    manifests = [read_manifest(folder) for folder in folders]
    return Shards(
        count=sum(len(manifest.shards) for manifest in manifests),
        samples=sum(manifest.samples for manifest in manifests),
        bytes=sum(manifest.bytes for manifest in manifests),
    )
