"""report.html, one file that needs nothing else.

Recall table, what published evaluators would print, comparison of the first results with the others, loss curves,
words and groups that are missed, recall against k, histograms of scores, the first five results of sample queries, the
worst failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.compare import Comparison, check_pair, compare
from finetune.curves import BOTTOM, HEIGHT, LEFT, LOG, RIGHT, TOP, WIDTH, Chart, charts, histogram_chart, rerank_chart
from finetune.pages import render
from finetune.query_ranks import QueryRanks, ranks_path, read_ranks
from finetune.results import Examples, Results, read_gallery, read_results, without_galleries
from finetune.table import build_table, legend, provenance_line
from shards.errors import UserError


@dataclass(frozen=True)
class Measured:
    """A results file with its thumbnails, its ranks where they lie beside it, and where it comes from in a line."""

    results: Results
    gallery: dict[str, str]
    ranks: QueryRanks | None
    provenance: str

    @property
    def examples(self) -> list[tuple[str, Examples]]:
        """What the page shows, by direction; directions without examples are left out."""
        both = [("image to text", self.results.examples_i2t), ("text to image", self.results.examples_t2i)]
        return [(title, examples) for title, examples in both if examples.sample or examples.worst]

    @property
    def charts(self) -> list[Chart]:
        """Of the analysis."""
        if self.results.analysis is None:
            return []
        points = self.results.analysis.rerank
        return [*([rerank_chart(points)] if points else []), histogram_chart(self.results.analysis.histogram)]


def write_report(places: Sequence[Path], runs: Sequence[Path], out: Path) -> None:
    """Writes the page.

    Args:
        places: Results files, or run folders: every results file in them, and their loss curves.
        runs: More run folders, for their loss curves alone.

    Raises:
        UserError: a place that is neither, before anything is written.
    """
    folders = [place for place in places if place.is_dir()]
    measured = [_measured(file) for place in places for file in results_files(place)]
    logged = [folder for folder in folders if (folder / LOG).is_file()]
    page = build_report(measured, charts(_distinct([*logged, *runs])))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def build_report(measured: Sequence[Measured], curves: Sequence[Chart]) -> str:
    """The page as text."""
    groups = build_table([m.results for m in measured])
    return render(
        "report.html",
        measured=measured,
        groups=groups,
        legend=legend(groups),
        charts=curves,
        comparisons=comparisons(measured),
        plot={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def comparisons(measured: Sequence[Measured]) -> list[Comparison]:
    """The first results against each of the others that can be paired with them, whatever the re-ranking."""
    found = []
    for other in measured[1:]:
        first = measured[0]
        try:
            check_pair(first.results, other.results, any_rerank=True)
        except UserError:
            continue
        if first.ranks and other.ranks:
            found.append(compare(first.results, first.ranks, other.results, other.ranks))
    return found


def results_files(place: Path) -> list[Path]:
    """The results files that `place` means: itself, or those directly inside a run folder.

    Raises:
        UserError: a folder that holds neither results nor a log, or nothing there.
    """
    if not place.is_dir():
        return [place]
    files = sorted(without_galleries(place.glob("results*.json")))
    if not files and not (place / LOG).is_file():
        raise UserError(f"`{place}` must be a results file, or a run folder with results*.json or {LOG}")
    return files


def _measured(file: Path) -> Measured:
    results = read_results(file)
    ranks = read_ranks(file, results.ranks) if ranks_path(file).is_file() else None
    return Measured(results, read_gallery(file), ranks, provenance_line(results))


def _distinct(runs: Sequence[Path]) -> list[Path]:
    return list({run.resolve(): run for run in runs}.values())
