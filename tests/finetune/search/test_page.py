"""The page in a real browser without a window: it searches, shows what the server found, and lays a heat map on it.
The report in the same browser, as narrow as a phone."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from finetune.report import write_report
from finetune.search.query import Query, Searcher
from tests.finetune.search.test_server import running

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--virtual-time-budget=10000",
)


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found


def see(browser, tmp_path, *words):
    command = [browser, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_search_rerank_and_heat(browser, indexed, tmp_path):
    searcher = Searcher.open(indexed)
    hits = searcher.search([Query("a red kite", k=24)])[0].hits
    with running(searcher) as server:
        address = f"{server.address}/?q=a+red+kite&look={hits[0].row}&word=1"
        dom = see(browser, tmp_path, "--window-size=500,900", "--dump-dom", address)
        picture = tmp_path / "page.png"
        see(browser, tmp_path, "--window-size=1100,800", f"--screenshot={picture}", f"{address}&rerank=1")
    assert [int(row) for row in re.findall(r'data-row="(\d+)"', dom)] == [hit.row for hit in hits]
    assert "24 pictures; encode" in dom
    assert re.search(r'aria-pressed="true">red<', dom), "the word of the address is chosen"
    assert dom.count('class="hit hot"') == 1
    shown = np.array(Image.open(picture).convert("RGB"))
    assert shown.shape == (800, 1100, 3)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1000, "pictures and a heat map, not an empty page"


def test_a_narrow_report_hides_no_query(browser, results_file, tmp_path):
    page = tmp_path / "report.html"
    write_report([results_file()], [], page)
    measure = "[...document.querySelectorAll('.query')].map((query) => query.offsetHeight).join()"
    page.write_text(page.read_text() + f"<script>document.title = innerWidth + ':' + {measure};</script>")
    dom = see(browser, tmp_path, "--window-size=500,900", "--dump-dom", page.as_uri())
    width, heights = re.search(r"<title>(\d+):([\d,]+)</title>", dom).groups()
    assert int(width) <= 700, "where the rules for phones hold"
    assert len(heights.split(",")) == page.read_text().count('<div class="query')
    assert min(map(int, heights.split(","))) > 50
