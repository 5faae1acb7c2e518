"""The report: its sections, its self-containment, and curves drawn where they should be."""

import json
import re

import pytest

from finetune.curves import HEIGHT, MOST_POINTS, WIDTH, charts, read_log
from finetune.report import results_files, write_report
from shards.errors import UserError

PICTURE = "data:image/jpeg;base64,AAAA"


@pytest.fixture
def run(tmp_path):
    """A run folder with a log."""

    def make(name="run", rows=None):
        folder = tmp_path / name
        folder.mkdir()
        rows = rows or [
            {"step": s, "loss": 10 / s, "loss/itc": 8 / s, "loss/itm": 2 / s, "lr": 1e-4} for s in range(1, 51)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make


def page_of(places, runs, tmp_path):
    out = tmp_path / "pages" / "report.html"
    write_report(places, runs, out)
    return out.read_text()


def test_sections(results_file, run, tmp_path):
    path = results_file(name="results.json")
    (tmp_path / "results.gallery.json").write_text(json.dumps({"k0": PICTURE, "k2": PICTURE}))
    page = page_of([path], [run()], tmp_path)
    for expected in ("Recall", "Training", "First five results", "Worst failures", "Image to text", "Text to image"):
        assert re.search(rf"<h[23]>{expected}", page), expected
    for expected in (
        "492.5",
        "484.2 to 500.8",
        "first right answer at place 417 of 2500",
        "total loss",
        "itc loss",
        "itm loss",
    ):
        assert expected in page, expected
    assert page.count(PICTURE) > 2
    assert "✓" in page
    assert "✗" in page
    assert 'class="none">k1' in page, "a picture that is missing is named"
    assert "a red &lt;kite&gt; over water" in page
    assert "<kite>" not in page


def test_needs_nothing_else(results_file, run, tmp_path):
    page = page_of([results_file()], [run()], tmp_path)
    assert not re.search(r"""(src|href)=["'](?!data:)|https?:|url\(|@import|<script""", page)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_a_run_folder_gives_its_results_and_its_curves(results_file, run, tmp_path):
    folder = run()
    results_file(name="results.json").rename(folder / "results.json")
    (folder / "results.gallery.json").write_text("{}")
    assert results_files(folder) == [folder / "results.json"]
    page = page_of([folder], [folder], tmp_path)
    assert "492.5" in page
    assert page.count("</svg>") == 3, "a run named twice is drawn once"


def test_curves_stay_inside_and_are_thinned(run):
    folder = run(rows=[{"step": s, "loss": 5.0 + s % 7} for s in range(1, 5001)])
    (chart,) = charts([folder])
    points = [tuple(map(float, p.split(","))) for p in chart.paths[0][1][1:].split("L")]
    assert MOST_POINTS / 2 <= len(points) <= MOST_POINTS
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert len(chart.y_ticks) <= 8


def test_a_step_logged_again_after_a_restart_counts_once(run):
    folder = run(rows=[{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}, {"step": 2, "loss": 7.0}])
    assert read_log(folder) == [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 7.0}]


@pytest.mark.parametrize(
    "rows", [[{"step": 1, "loss": 0.0}], [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}]]
)
def test_short_and_broken_curves_are_drawn(run, rows):
    assert len(charts([run(rows=rows)])) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"k0": "https://elsewhere/x.jpg"}'])
def test_a_gallery_of_something_else_is_refused(results_file, tmp_path, content):
    path = results_file()
    path.with_suffix(".gallery.json").write_text(content)
    with pytest.raises(UserError, match="must hold data URIs"):
        page_of([path], [], tmp_path)


def test_refusals(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must be a results file, or a run folder"):
        page_of([tmp_path / "empty"], [], tmp_path)
    with pytest.raises(UserError, match=r"must be a run folder with a log\.jsonl"):
        page_of([run()], [tmp_path / "empty"], tmp_path)
    broken = run("broken")
    (broken / "log.jsonl").write_text("not json\n")
    with pytest.raises(UserError, match="a line that is not JSON"):
        page_of([broken], [], tmp_path)
    assert not (tmp_path / "pages").exists(), "nothing is written before everything is read"
