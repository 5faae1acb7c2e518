"""results.json: one measured row with all that is needed to believe it. `table` and `report` read nothing else.

Next to `NAME.json` lie `NAME.ranks.npz`, the rank of every query, for comparisons (`query_ranks.py`), and
`NAME.gallery.json`, {image key: data URI of a small JPEG}, for the report: files of their own so that the figures stay
small enough to read and to diff, and no folder so that they are easily moved together.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from finetune.bootstrap import Intervals
from finetune.recall import Recall
from pretrain.settings import Section
from shards.errors import UserError

FORMAT: Final = "duostream.results/2"
GALLERY = ".gallery.json"
Stream = Literal["single", "dual"]


class CheckpointFacts(Section):
    """Which weights: the sha256 of the weights file, and names without the path of this machine."""

    digest: str
    run: str
    name: str
    step: int


class DataFacts(Section):
    """Which pairs: the fingerprint of the source, and how many of each were ranked."""

    name: str
    dataset: str
    digest: str
    images: int
    texts: int


class Protocol(Section):
    """How it was measured. `rerank` 0: all pairs were ranked by one score, the cosine (`itc`) or matching (`itm`)."""

    captions: Literal["all", "first5"]
    ties: Literal["pessimistic"] = "pessimistic"
    rerank: int
    score: Literal["itc", "itm", "itm+itc"]
    folds: int = 1


class FirstStage(Section):
    """The ranking before re-ranking.

    `ceiling` is the percent of queries with a right item among the k candidates, which re-ranking cannot exceed.
    `boundary_ties` counts the queries where equal scores straddle place k; the lower position was taken.
    """

    recall: Recall
    ceiling: float
    boundary_ties: int


class Direction(Section):
    """One direction. With folds, recalls are means over them and `deviation` their standard deviations."""

    queries: int
    pessimistic: Recall
    optimistic: Recall
    tied: float
    first_stage: FirstStage | None = None
    deviation: Recall | None = None


class RSum(Section):
    """The sum of the six recalls, and 95 % intervals of it and of each, clustered by image."""

    pessimistic: float
    optimistic: float
    intervals: Intervals


class ExtendedDirection(Section):
    """One direction under ECCV-Caption and CrissCrossed Captions, in percent, pessimistic; see `extended.py`."""

    eccv_map_at_r: float
    eccv_r_precision: float
    eccv_r1: float
    cxc_r1: float
    cxc_r5: float
    cxc_r10: float


class Extended(Section):
    """Both directions under the extended ground truths of COCO."""

    i2t: ExtendedDirection
    t2i: ExtendedDirection


class AsPrinted(Section):
    """What a published evaluator prints for these scores; see `compatibility/`.

    `i2t` and `t2i` are recall at 1, 5 and 10 in percent, `lines` all its figures by its own names, in its own units.
    """

    mode: str
    difference: str
    i2t: tuple[float, float, float]
    t2i: tuple[float, float, float]
    lines: dict[str, float]


class WordMiss(Section):
    """A word in `texts` of the texts, and how often those, and all others, find their image first, in percent."""

    word: str
    texts: int
    r1: float
    others_r1: float


class Confusion(Section):
    """`queries` of the `of` queries of group `own` had a wrong first answer from group `found`."""

    own: str
    found: str
    queries: int
    of: int


class RerankPoint(Section):
    """Recall with k re-ranked candidates, in percent; the ceilings are what re-ranking cannot exceed at R@1."""

    k: int
    i2t_r1: float
    t2i_r1: float
    rsum: float
    i2t_ceiling: float
    t2i_ceiling: float


class Histogram(Section):
    """Shares of right and wrong pairs by score; `edges` are one more than the bins."""

    score: Literal["itc", "itm"]
    edges: list[float]
    right: list[float]
    wrong: list[float]


class Analysis(Section):
    """What the report shows beside the figures; see `analysis.py`. `group_by` is empty where nothing was grouped."""

    words: list[WordMiss]
    group_by: str
    confusions_i2t: list[Confusion]
    confusions_t2i: list[Confusion]
    rerank: list[RerankPoint]
    histogram: Histogram


class Found(Section):
    """A gallery item in its place: an image's key, with the text that was found or, for an image, its first caption."""

    key: str
    text: str
    score: float
    right: bool


class Example(Section):
    """A query and its first five. `text` is the query for text-to-image and empty for image-to-text."""

    key: str
    text: str
    captions: list[str]
    rank: int
    found: list[Found]


class Examples(Section):
    """Queries spread evenly over the data, not chosen, and the queries with the worst ranks."""

    sample: list[Example]
    worst: list[Example]


class Results(Section):
    """The whole file.

    `system` names the published system that the row reproduces, if any. `ranks` is the sha256 of the archive of ranks
    beside it. `extended` is there for COCO where its ground truth is installed, `compatibility` for the modes that were
    asked for.
    """

    format: Literal["duostream.results/2"] = FORMAT
    name: str
    system: str = ""
    stream: Stream
    checkpoint: CheckpointFacts
    data: DataFacts
    pretraining_data: str
    protocol: Protocol
    i2t: Direction
    t2i: Direction
    rsum: RSum
    ranks: str
    extended: Extended | None = None
    compatibility: list[AsPrinted] = Field([])
    analysis: Analysis | None = None
    command: str
    versions: dict[str, str]
    machine: dict[str, str | int]
    date: str
    seconds: float
    examples_i2t: Examples = Field(Examples(sample=[], worst=[]))
    examples_t2i: Examples = Field(Examples(sample=[], worst=[]))

    @property
    def figures(self) -> tuple[float, ...]:
        """The headline: six recalls and RSUM, in the order of `finetune.bootstrap.NAMES`."""
        i2t, t2i = self.i2t.pessimistic, self.t2i.pessimistic
        return (i2t.r1, i2t.r5, i2t.r10, t2i.r1, t2i.r5, t2i.r10, self.rsum.pessimistic)


def read_results(path: Path) -> Results:
    """Raises UserError where the file is missing or is not one that `finetune evaluate` wrote."""
    if not path.is_file():
        raise UserError(f"`results` (={path}) is not a file")
    try:
        values = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"`results` (={path}) is not JSON") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"`results` (={path}) must be a file that `finetune evaluate` wrote, of format {FORMAT}")
    try:
        return Results.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"`results` (={path}) is damaged: {where}: {first['msg'].lower()}") from None


def read_gallery(path: Path) -> dict[str, str]:
    """The thumbnails beside a results file; empty where they were left behind.

    Raises:
        UserError: a file that holds something else; the report writes its values into a page.
    """
    file = gallery_path(path)
    if not file.is_file():
        return {}
    try:
        pictures = json.loads(file.read_bytes())
        if all(uri.startswith("data:image/") for uri in pictures.values()):
            return pictures
    except (ValueError, AttributeError):
        pass
    raise UserError(f"the gallery (={file}) must hold data URIs of images by key, as `finetune evaluate` writes them")


def gallery_path(path: Path) -> Path:
    """results.json -> results.gallery.json."""
    return path.with_suffix(GALLERY)


def without_galleries(files: Iterable[Path]) -> list[Path]:
    """The others of `files`: a shell's `results*.json` means the galleries, too."""
    return [file for file in files if not file.name.endswith(GALLERY)]
