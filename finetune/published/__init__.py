"""The figures of a published survey of pretrained systems, as printed, with our notes on what cannot be right.

`pretraining_results.csv` holds recalls in percent (empty where none is printed; `doubtful` names the columns whose
figure cannot be right or contradicts others), `pretraining_systems.csv` what each system was pretrained on and with
which tasks. `reproduction.csv` says how each was measured: by the similarity of two encoders, by reading every pair or
the best k of each query by similarity, on which captions, and whose code printed the figures
(`finetune/compatibility/`). ALBEF, which that survey leaves out, stands last, from another. CC is Conceptual Captions,
CC12M Conceptual 12M, VG Visual Genome, SBU the SBU captions, Books the BooksCorpus.
"""

import csv
from dataclasses import dataclass
from importlib import resources

FIGURES = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


@dataclass(frozen=True)
class Published:
    """One printed row; `figures` in the order of FIGURES, None where nothing is printed; `doubtful` names of them."""

    system: str
    stream: str
    dataset: str
    pretraining_data: str
    figures: tuple[float | None, ...]
    doubtful: frozenset[str]
    source: str
    note: str

    @property
    def sum_of_recalls(self) -> float | None:
        """What RSUM should be; None where a recall is missing or doubtful."""
        recalls = self.figures[:6]
        if self.doubtful - {"rsum"} or None in recalls:
            return None
        return sum(value for value in recalls if value is not None)


def published_results() -> list[Published]:
    """All rows, in the survey's order."""
    data = {row["system"]: row["pretraining_data"].replace(";", ", ") for row in _read("pretraining_systems.csv")}
    return [
        Published(
            system=row["system"],
            stream=row["stream"],
            dataset=row["dataset"],
            pretraining_data=data[row["system"]],
            figures=tuple(float(row[name]) if row[name] else None for name in FIGURES),
            doubtful=frozenset(filter(None, row["doubtful"].split(";"))),
            source=f"{row['venue']} {row['year']}",
            note=row["note"],
        )
        for row in _read("pretraining_results.csv")
    ]


@dataclass(frozen=True)
class Reproduction:
    """How a published system was measured.

    Attributes:
        captions: `first5` or `all`.
        compat: The mode of its code, empty where there is none.
        k: By corpus, how many of each query's best by similarity are matched; 0 where none or every one is.
    """

    system: str
    every_pair: bool
    captions: str
    compat: str
    k: dict[str, int]


def reproductions() -> dict[str, Reproduction]:
    """By system, in the survey's order of streams."""
    return {
        row["system"]: Reproduction(
            system=row["system"],
            every_pair=row["pairs"] == "every",
            captions=row["captions"],
            compat=row["compat"],
            k={corpus: int(row[f"{corpus}_k"] or 0) for corpus in ("coco", "flickr30k")},
        )
        for row in _read("reproduction.csv")
    }


def _read(name: str) -> list[dict[str, str]]:
    text = resources.files("finetune.published").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))
