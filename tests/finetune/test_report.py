"""The report: its sections, its self-containment, and curves drawn where they should be."""

import json
import re

import numpy as np
import pytest

from finetune.curves import HEIGHT, LEFT, MOST_POINTS, RIGHT, WIDTH, charts, histogram_chart, read_log
from finetune.recall import Recall
from finetune.report import results_files, write_report
from finetune.results import Analysis, AsPrinted, Confusion, Extended, Histogram, RerankPoint, WordMiss
from shards.errors import UserError
from tests.finetune.test_compare import ranks_of, write

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


def analysis():
    return Analysis(
        words=[WordMiss(word="<kite>", texts=20, r1=5.0, others_r1=80.0)],
        group_by="kind",
        confusions_i2t=[Confusion(own="cat", found="dog", queries=7, of=31)],
        confusions_t2i=[],
        rerank=[
            RerankPoint(k=k, i2t_r1=50 + k, t2i_r1=40 + k, rsum=400, i2t_ceiling=90 + k / 10, t2i_ceiling=80)
            for k in (0, 10, 20)
        ],
        histogram=Histogram(score="itc", edges=[-0.5, 0.0, 0.5, 1.0], right=[0, 0.25, 0.75], wrong=[0.5, 0.5, 0]),
    )


def test_what_it_misses(results_file, tmp_path):
    page = page_of([results_file(analysis=analysis())], [], tmp_path)
    assert "What it misses" in page
    assert "&lt;kite&gt;</th><td>20</td><td>5.0</td><td>80.0</td>" in page
    assert 'cat</th><td class="stay">dog</td><td>7</td><td>31</td>' in page
    assert "Wrong first answers by kind, text to image" not in page, "nothing to show"
    assert "R@1 in percent against re-ranked candidates" in page
    assert "Share of pairs by cosine" in page
    assert not re.search(r"nan|inf\b", " ".join(re.findall(r' d="([^"]*)"', page)))


def test_a_histogram_is_drawn_where_its_scores_are():
    chart = histogram_chart(analysis().histogram)
    wrong = [tuple(map(float, point.split(","))) for point in chart.paths[1][1].removeprefix("M").split("L")]
    xs = [x for x, _ in wrong]
    assert min(xs) == LEFT
    assert max(xs) == WIDTH - RIGHT
    assert xs[2] - xs[1] == pytest.approx((WIDTH - LEFT - RIGHT) / 3, abs=0.1), "three equal bins from -0.5 to 1"
    assert [label for _, label in chart.x_ticks] == ["-0.5", "0", "0.5", "1"]


def test_two_runs_are_compared(made_up, tmp_path):
    """The second gets all that the first gets and forty images more; a third of other data is left out."""
    worse, better = np.repeat([1, 99], [100, 100]), np.repeat([1, 99], [140, 60])
    paths = [
        write(made_up, tmp_path / f"{name}.json", name, ranks_of(rank, np.repeat(rank, 5)))
        for name, rank in (("base", worse), ("<tuned>", better), ("other", worse))
    ]
    other = json.loads(paths[2].read_text())
    other["data"]["digest"] = "0" * 64
    paths[2].write_text(json.dumps(other))
    page = page_of(paths, [], tmp_path)
    assert "Compared with base" in page
    assert "&lt;tuned&gt; minus base" in page
    assert "40 images and 200 texts in &lt;tuned&gt;, 0 and 0 in base" in page
    assert "other minus base" not in page
    assert page.count('class="span sure"') == 7
    paths[0].with_suffix(".ranks.npz").unlink()
    assert "Compared with" not in page_of(paths, [], tmp_path), "without ranks nothing can be paired"


def test_folds_and_extended_ground_truths(results_file, made_up, tmp_path):
    way = {
        "eccv_map_at_r": 33.25,
        "eccv_r_precision": 44.25,
        "eccv_r1": 50,
        "cxc_r1": 61.75,
        "cxc_r5": 80,
        "cxc_r10": 90,
    }
    fold = made_up().i2t.model_copy(update={"deviation": Recall(1.75, 1, 1, 0, 0)})
    path = results_file(extended=Extended(i2t=way, t2i=way), i2t=fold, t2i=fold, protocol=made_up().protocol)
    page = page_of([path], [], tmp_path)
    for line in (
        "mAP@R</dt><dd>33.2 and 33.2 %",
        "R-Precision</dt><dd>44.2 and",
        "CxC R@1</dt><dd>61.8",
        "<dd>1.8 and 1.8",
    ):
        assert line in page
    assert "Mean place, both ways</dt><dd>3.2 and 3.2" in page


def test_published_evaluators_stand_apart(results_file, tmp_path):
    printed = AsPrinted(mode="uniter", difference="half <precision>", i2t=(1, 2, 3), t2i=(4, 5, 6.25), lines={"r": 1})
    page = page_of([results_file(compatibility=[printed])], [], tmp_path)
    assert "As published evaluators would print it" in page
    assert "half &lt;precision&gt;" in page
    assert "<td>6.2</td>" in page
