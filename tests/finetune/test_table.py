"""The table in its formats, and what may enter it."""

import csv
import io
import itertools
import json
import shutil
import subprocess

import pytest

from finetune.commands.show import Format
from finetune.published import FIGURES, published_results
from finetune.results import read_results
from finetune.table import build_table, to_records
from finetune.table_formats import WRITERS, to_csv, to_html, to_latex, to_markdown, write_table
from shards.errors import UserError

MARKDOWN = """\
## scenes

| System   | Stream | Data         | i2t@1 | i2t@5 | i2t@10 | t2i@1 | t2i@5 | t2i@10 |  RSUM | Diff. | Note |
| -------- | ------ | ------------ | ----: | ----: | -----: | ----: | ----: | -----: | ----: | ----: | ---: |
| **ours** | dual   | scenes-train |  70.0 |  90.0 |   95.5 |  60.0 |  85.0 |   92.0 | 492.5 |       |    1 |

1. checkpoint 0123456789ab step 600; data fedcba987654 (500 images, 2500 texts); re-ranked k=32 by itm; captions all; \
ties pessimistic; RSUM 95 % interval 484.2 to 500.8; 2026-11-21

Recall in percent at 1, 5 and 10: i2t finds the texts of an image, t2i the image of a text; RSUM is their sum. \
Bold rows are measured here, ties counted against the system.
"""

CSV = f"""\
dataset,system,measured,stream,data,i2t_r1,i2t_r5,i2t_r10,t2i_r1,t2i_r5,t2i_r10,rsum,difference,checkpoint,step,\
data_digest,protocol,k,date,note
scenes,ours,1,dual,scenes-train,70,90,95.5,60,85,92,492.5,,{"0123456789abcdef" * 4},600,\
{"fedcba9876543210" * 4},re-ranked k=32 by itm; captions all; ties pessimistic,32,2026-11-21T04:00:00+00:00,\
"checkpoint 0123456789ab step 600; data fedcba987654 (500 images, 2500 texts); re-ranked k=32 by itm; captions all; \
ties pessimistic; RSUM 95 % interval 484.2 to 500.8; 2026-11-21"
"""


def test_markdown_of_a_measured_row(made_up):
    assert to_markdown(build_table([made_up()])) == MARKDOWN


def test_csv_of_a_measured_row(made_up):
    assert to_csv(build_table([made_up()])) == CSV


def test_html_is_whole_and_escaped(made_up):
    page = to_html(build_table([made_up(name="<b>ours</b>")]))
    assert page.startswith("<!doctype html>")
    assert "&lt;b&gt;ours&lt;/b&gt;" in page
    assert "<b>ours" not in page
    assert "<td>492.5</td>" in page
    assert "http" not in page, "a page must need nothing from elsewhere"


def test_measured_rows_stand_under_the_published_ones_of_their_dataset(made_up):
    groups = build_table([made_up(dataset="scenes"), made_up(dataset="coco_5k", k=0)])
    assert [group.title for group in groups] == ["COCO 5K", "scenes"]
    assert [row.system for row in groups[0].rows][-2:] == ["ALBEF", "ours"]
    assert len(groups[0].rows) == 11
    assert "no re-ranking" in groups[0].rows[-1].note
    assert [group.title for group in build_table([made_up(dataset="coco_5k")], only_measured=True)] == ["COCO 5K"]
    assert len(build_table([made_up(dataset="coco_5k")], only_measured=True)[0].rows) == 1


def test_a_measured_row_stands_under_the_row_that_it_reproduces(made_up):
    """VinVL's six figures add up to 494.9; OSCAR's misprinted R@1 forbids a difference, its wrong RSUM does not."""
    rows = build_table([made_up("mine", "coco_5k", system="VinVL"), made_up("mine too", "coco_5k", system="OSCAR")])
    table = {row.system: row for row in rows[0].rows}
    systems = [row.system for row in rows[0].rows]
    assert systems.index("mine") == systems.index("VinVL") + 1
    assert table["mine"].difference == pytest.approx(492.5 - 494.9)
    assert table["mine too"].difference is None
    assert "misprint" in table["OSCAR"].note
    assert "not measured here" in table["METER"].note
    assert "not measured here" not in table["VinVL"].note
    oscar = build_table([made_up("mine", "coco_1k", system="OSCAR")])[0].rows
    assert next(row for row in oscar if row.measured).difference == pytest.approx(492.5 - 556.5)
    one_sided = build_table([made_up("mine", "flickr30k", system="ViLBERT")])[0].rows
    assert one_sided[1].difference is None, "three of its figures are not printed"
    assert "| -2.4 |" in " ".join(to_markdown(rows).split())


def test_latex(made_up, tmp_path):
    """Compiled where there is a LaTeX, else read."""
    text = to_latex(build_table([made_up("100 % of A_B & C", "coco_5k", system="VinVL")]))
    assert r"\textbf{100 \% of A\_B \& C} & dual & scenes-train & 70.0" in text
    assert text.count(r"\begin{") == text.count(r"\end{")
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:-1]
    assert {line.replace(r"\&", "").count("&") for line in body} == {11}
    if shutil.which("pdflatex"):
        page = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + text + r"\end{document}"
        (tmp_path / "t.tex").write_text(page)
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_every_format_has_a_writer(made_up):
    assert {form.value for form in Format} == WRITERS.keys()
    assert all("492.5" in write_table(build_table([made_up()]), form) for form in WRITERS)


def test_without_results_all_published_rows():
    groups = build_table([])
    assert [(group.title, len(group.rows)) for group in groups] == [("COCO 5K", 10), ("COCO 1K", 4), ("Flickr30K", 13)]
    assert len(to_records(groups)) == 27
    rows = list(csv.DictReader(io.StringIO(to_csv(groups))))
    assert (rows[-2]["system"], rows[-2]["rsum"], rows[-2]["measured"]) == ("METER", "570.7", "0")
    shown = {name: value for name, value in rows[-1].items() if value and name in ("system", *FIGURES)}
    assert shown == {"system": "ALBEF", "i2t_r1": "95.9", "t2i_r1": "85.6"}


def test_rows_of_a_markdown_table_are_equally_long():
    for block in to_markdown(build_table([])).split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(row) for row in rows}) <= 1


def test_published_figures_are_recalls_and_every_odd_one_has_a_note():
    for row in published_results():
        recalls, rsum = row.figures[:6], row.figures[6]
        assert all(value is None or 0 < value <= 100 for value in recalls)
        known = [value for value in recalls if value is not None]
        odd = len(known) == 6 and (rsum is None or abs(sum(known) - rsum) > 0.05)
        assert ("rsum" in row.doubtful) == (rsum is not None and len(known) == 6 and "misprint" in row.note)
        odd |= any(a > b for three in (recalls[:3], recalls[3:]) for a, b in itertools.pairwise(three) if a and b)
        assert not odd or row.note, f"{row.system} on {row.dataset}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file"),
        ("{", "is not JSON"),
        ("[]", "must be a file that `finetune evaluate` wrote"),
        ('{"rsum": 600}', "must be a file that `finetune evaluate` wrote"),
        ('{"format": "duostream.results/2"}', "is damaged: name: field required"),
    ],
)
def test_only_results_files_enter(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(path)


def test_an_added_figure_is_refused(results_file):
    path = results_file()
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"rsum_by_hand": 600}))
    with pytest.raises(UserError, match="rsum_by_hand"):
        read_results(path)
