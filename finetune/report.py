"""report.html, one file that needs nothing else.

Recall table, loss curves, the first five results of sample queries in both directions, and the worst failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.curves import BOTTOM, HEIGHT, LEFT, LOG, RIGHT, TOP, WIDTH, Chart, charts
from finetune.pages import render
from finetune.results import Examples, Results, read_gallery, read_results
from finetune.table import build_table, legend, provenance_line
from shards.errors import UserError


@dataclass(frozen=True)
class Measured:
    """A results file with its thumbnails and the line that says where it comes from."""

    results: Results
    gallery: dict[str, str]
    provenance: str

    @property
    def examples(self) -> list[tuple[str, Examples]]:
        """What the page shows, by direction; directions without examples are left out."""
        both = [("image to text", self.results.examples_i2t), ("text to image", self.results.examples_t2i)]
        return [(title, examples) for title, examples in both if examples.sample or examples.worst]


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
        plot={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )


def results_files(place: Path) -> list[Path]:
    """The results files that `place` means: itself, or those directly inside a run folder.

    Raises:
        UserError: a folder that holds neither results nor a log, or nothing there.
    """
    if not place.is_dir():
        return [place]
    files = sorted(file for file in place.glob("results*.json") if not file.name.endswith(".gallery.json"))
    if not files and not (place / LOG).is_file():
        raise UserError(f"`{place}` must be a results file, or a run folder with results*.json or {LOG}")
    return files


def _measured(file: Path) -> Measured:
    results = read_results(file)
    return Measured(results, read_gallery(file), provenance_line(results))


def _distinct(runs: Sequence[Path]) -> list[Path]:
    return list({run.resolve(): run for run in runs}.values())
