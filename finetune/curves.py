"""Small inline SVG charts: loss curves of runs from log.jsonl, recall against k of re-ranking, histograms of scores."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.results import Histogram, RerankPoint
from shards.errors import UserError

LOG = "log.jsonl"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 360, 200, 44, 26, 10, 10
MOST_POINTS = 400  # per line: more than the chart has pixels only makes the file larger
TICKS = 4


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, its place in the colour order, and (x, y) points."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over a shared axis, ready to draw; `unit` stands at the last number of the x axis."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    paths: list[tuple[int, str]]


def read_log(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log in order of step; a step that was logged again after a restart counts once, the last
    time.

    Raises:
        UserError: no log, or a line that is not JSON with a step.
    """
    file = run / LOG
    if not file.is_file():
        raise UserError(f"`run` (={run}) must be a run folder with a {LOG}")
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        by_step = {row["step"]: row for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(f"`run` (={run}) has a {LOG} with a line that is not JSON with a `step`") from None
    return [by_step[step] for step in sorted(by_step)]


def charts(runs: Sequence[Path]) -> list[Chart]:
    """One chart for each loss that any run logged; the sum comes first."""
    logs = [read_log(run) for run in runs]
    names = dict.fromkeys(name for log in logs for row in log for name in row if name.split("/")[0] == "loss")
    found = [(name, _lines(name, runs, logs)) for name in sorted(names)]
    return [
        draw("total loss" if name == "loss" else name.removeprefix("loss/") + " loss", "steps", lines)
        for name, lines in found
    ]


def _lines(name: str, runs: Sequence[Path], logs: Sequence[list[dict[str, float]]]) -> list[Line]:
    lines = []
    for colour, (run, log) in enumerate(zip(runs, logs, strict=True)):
        points = [(row["step"], row[name]) for row in log if name in row and math.isfinite(row[name])]
        if points:
            lines.append(Line(run.resolve().name, colour, _thin(points)))
    return lines


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of equal runs of points, so that nothing is hidden between those that are kept."""
    size = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def rerank_chart(points: Sequence[RerankPoint]) -> Chart:
    """R@1 both ways against k, with the ceilings that k allows."""
    named = {
        "image to text": [(p.k, p.i2t_r1) for p in points],
        "text to image": [(p.k, p.t2i_r1) for p in points],
        "right one among the k, image to text": [(p.k, p.i2t_ceiling) for p in points if p.k],
        "right one among the k, text to image": [(p.k, p.t2i_ceiling) for p in points if p.k],
    }
    lines = [Line(name, colour, found) for colour, (name, found) in enumerate(named.items())]
    return draw("R@1 in percent against re-ranked candidates", "candidates", lines, from_zero=False)


def histogram_chart(histogram: Histogram) -> Chart:
    """Shares of right and wrong pairs by score, as two outlines."""
    named = {"right pairs": histogram.right, "wrong pairs": histogram.wrong}
    lines = [Line(name, colour, _outline(histogram.edges, found)) for colour, (name, found) in enumerate(named.items())]
    what = "cosine" if histogram.score == "itc" else "log-odds of a match"
    return draw(f"Share of pairs by {what}", what, lines)


def _outline(edges: Sequence[float], shares: Sequence[float]) -> list[tuple[float, float]]:
    steps = [[(left, share), (right, share)] for left, right, share in zip(edges, edges[1:], shares, strict=False)]
    return [(edges[0], 0.0), *(point for step in steps for point in step), (edges[-1], 0.0)]


def draw(title: str, unit: str, lines: list[Line], from_zero: bool = True) -> Chart:
    """Places the lines in the chart's pixels; `from_zero` puts zero on the y axis whatever the values."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_low = min([0, *xs])
    zero = [0.0] if from_zero or not ys else []
    x_steps, y_steps = _ticks(x_low, max(xs, default=1)), _ticks(min([*zero, *ys]), max(ys, default=1))
    x_range, y_range = (x_low, max(xs, default=1) or 1), (y_steps[0], max(y_steps[-1], max(ys, default=1)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)

    paths = [(line.colour, "M" + "L".join("{:.1f},{:.1f}".format(*place(*p)) for p in line.points)) for line in lines]
    return Chart(
        title=title,
        unit=unit,
        lines=lines,
        x_ticks=[(place(x, y_range[0])[0], f"{x:g}") for x in x_steps if x_low <= x <= x_range[1]],
        y_ticks=[(place(x_low, y)[1], f"{y:g}") for y in y_steps],
        paths=paths,
    )


def _ticks(low: float, high: float) -> list[float]:
    """About TICKS round numbers from at or below `low` to at or above `high`."""
    high = high if high > low else low + 1
    raw = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
