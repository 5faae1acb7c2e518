"""Names of region classes and attributes as numbers: a small JSON file, `{"labels": [...], "attributes": [...]}`."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pretrain.places import locate
from shards.errors import UserError
from shards.sample import Sample
from shards.storage import write_atomically

UNKNOWN = -100  # cross-entropy skips it


@dataclass(frozen=True)
class RegionVocabulary:
    """A name's number is its place in the list; names that are not listed are unknown."""

    labels: tuple[str, ...]
    attributes: tuple[str, ...]

    @cached_property
    def _label(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.labels)}

    @cached_property
    def _attribute(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.attributes)}

    def label(self, name: str) -> int:
        return self._label.get(name, UNKNOWN)

    def attribute(self, name: str) -> int:
        return self._attribute.get(name, UNKNOWN)

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> "RegionVocabulary":
        """Every name that the regions carry, in alphabetical order."""
        labels: set[str] = set()
        attributes: set[str] = set()
        for sample in samples:
            for region in sample.regions:
                labels.add(region.label)
                attributes.update(region.attributes)
        return cls(tuple(sorted(labels)), tuple(sorted(attributes)))

    @classmethod
    def read(cls, place: str) -> "RegionVocabulary":
        """Reads the file.

        Raises:
            UserError: it is missing or not of this form.
        """
        path = locate("data.regions.labels", place)
        try:
            values = json.loads(path.read_text())
            labels, attributes = values["labels"], values["attributes"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f'`data.regions.labels` (={path}) must hold {{"labels": [...], "attributes": [...]}}'
            ) from None
        return cls(tuple(map(str, labels)), tuple(map(str, attributes)))

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps({"labels": self.labels, "attributes": self.attributes}, indent=1).encode())
