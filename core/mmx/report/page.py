"""The sweep's page: one self-contained HTML file with the curves and the leaderboard."""

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from mmx.config import SweepSpec
from mmx.contracts import Tracker
from mmx.report.standings import Standing, axes_of, best_by_strategy, curve, scores_of, why_pruned

# Okabe and Ito's palette, which colour-blind readers tell apart; markers and dashes say it once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = "osD^vPX*"
TEMPLATE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ name }}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25rem .7rem;text-align:right;
border-bottom:1px solid #ddd;
white-space:nowrap}td.text,th.text{text-align:left}svg{max-width:100%;height:auto}
.scroll{overflow-x:auto}</style>
<h1>{{ name }}</h1>
<p>Points are ranked, and the best of each strategy picked, by {{ objective }} on the validation split. All
figures below are from the test split, mean ± standard deviation over {{ seeds }} seed(s).</p>
{% if curves %}<h2>The best of each strategy as modalities go missing</h2>{{ curves }}{% endif %}
{% if front %}<h2>{{ front_of }}</h2>{{ front }}{% endif %}
<h2>All points</h2><div class="scroll"><table><tr>{% for c in axes %}<th class="text">{{ c }}</th>{% endfor %}
{% for c in figures %}<th>{{ c }}</th>{% endfor %}{% if pruned %}<th class="text">pruned</th>{% endif %}</tr>
{% for row in rows %}<tr>{% for c in row.axes %}<td class="text">{{ c }}</td>{% endfor %}
{% for c in row.figures %}<td>{{ c }}</td>{% endfor %}
{% if pruned %}<td class="text">{{ row.pruned }}</td>{% endif %}</tr>{% endfor %}</table></div></html>
"""


def method_of(standing: Standing) -> str:
    """Name what a point is compared by: its method where the sweep names methods, else its strategy."""
    return standing.params.get("method", standing.params["strategy"])


def looks(found: Sequence[Standing]) -> dict[str, tuple[str, str]]:
    """Give each method its colour and marker; the same pair comes again after 64 of them."""
    names = dict.fromkeys(method_of(s) for s in found)
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)])
        for i, name in enumerate(names)
    }


def write_page(
    path: Path, sweep: SweepSpec, objective: str, tracker: Tracker, found: Sequence[Standing]
) -> None:
    """Write the page; `objective` is the figure that points are ranked by."""
    from jinja2 import Environment

    wanted = objective.removeprefix("summary/robust_")
    scores = scores_of(found)  # none where all points were pruned
    score = wanted if wanted in scores or not scores else scores[0]
    figures = ["clean", "worst", "drop_at_50", "retention"]
    figures = [f"summary/{name}" for name in ([f"robust_{score}"] if scores else []) + figures]
    axes = axes_of(sweep.search, found)
    text = (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(
            name=sweep.name,
            objective=objective,
            seeds=max(s.seeds for s in found),
            **_drawings(sweep, tracker, found, score if scores else ""),
            axes=axes,
            figures=[f.removeprefix("summary/") for f in figures] + ["trainable"],
            rows=[_row(s, axes, [*figures, "cost/trainable_params"]) for s in found],
            pruned=any(why_pruned(s.records) for s in found),
        )
    )
    path.write_text(text, encoding="utf-8")


def _row(standing: Standing, axes: Sequence[str], figures: Sequence[str]) -> dict[str, object]:
    return {
        "axes": [standing.params.get(a, "none") for a in axes],
        "figures": [standing.told(f) if standing.values(f) else "–" for f in figures],
        "pruned": why_pruned(standing.records),
    }


def _drawings(sweep: SweepSpec, tracker: Tracker, found: Sequence[Standing], score: str) -> dict[str, object]:
    """Draw the curves, and with two objectives the Pareto front, where there is anything to draw."""
    from markupsafe import Markup

    from mmx.report.pareto import draw_front

    wanted = sweep.search.objective
    drawn: dict[str, object] = {}
    if score and best_by_strategy(found):
        drawn["curves"] = Markup(svg_of(_draw(tracker, found, score)))  # noqa: S704 our own SVG
    if len(wanted) == 2 and any(all(s.values(f) for f in wanted) for s in found):
        drawn["front"] = Markup(svg_of(draw_front(found, wanted)))  # noqa: S704 our own SVG
        drawn["front_of"] = " against ".join(wanted)
    return drawn


def _draw(tracker: Tracker, found: Sequence[Standing], score: str) -> Any:
    """Draw a line a strategy, with the range over seeds as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    own = looks(found)
    for strategy, standing in best_by_strategy(found).items():
        points = curve(tracker, standing, score)
        if not points:
            continue
        colour, marker = own[strategy]
        axis.plot(
            list(points), [mean(v) for v in points.values()], label=strategy, color=colour, marker=marker
        )
        axis.fill_between(
            list(points),
            [min(v) for v in points.values()],
            [max(v) for v in points.values()],
            color=colour,
            alpha=0.15,
        )
    axis.set(xlabel="missing (%), any modality", ylabel=score.replace("_", " "))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def svg_of(figure: Any) -> str:
    """Give a matplotlib figure as an SVG element; its text stays text, to be searched and read out."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
