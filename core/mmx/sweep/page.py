"""The sweep's page: one self-contained HTML file with the curves and the leaderboard."""

import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from mmx.config import SweepSpec
from mmx.contracts import Tracker
from mmx.sweep.summary import Standing, axes_of, best_by_strategy, curve, scores_of

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
<h2>The best of each strategy as modalities go missing</h2>{{ figure }}
<h2>All points</h2><div class="scroll"><table><tr>{% for c in axes %}<th class="text">{{ c }}</th>{% endfor %}
{% for c in figures %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for c in row.axes %}<td class="text">{{ c }}</td>{% endfor %}
{% for c in row.figures %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</table></div></html>
"""


def write_page(
    path: Path, sweep: SweepSpec, objective: str, tracker: Tracker, found: Sequence[Standing]
) -> None:
    """Write the page."""
    from jinja2 import Environment
    from markupsafe import Markup

    score = objective.removeprefix("summary/robust_")
    scores = scores_of(found)
    drawn = score if score in scores else scores[0]
    figures = [
        f"summary/robust_{drawn}",
        "summary/clean",
        "summary/worst",
        "summary/drop_at_50",
        "summary/retention",
    ]
    axes = axes_of(sweep.search, found)
    rows = [
        {
            "axes": [s.params.get(a, "none") for a in axes],
            "figures": [s.told(f) for f in (*figures, "cost/trainable_params")],
        }
        for s in found
    ]
    text = (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(
            name=sweep.name,
            objective=objective,
            seeds=max(s.seeds for s in found),
            figure=Markup(_draw(tracker, found, drawn)),  # noqa: S704 our own SVG
            axes=axes,
            figures=[f.removeprefix("summary/") for f in figures] + ["trainable"],
            rows=rows,
        )
    )
    path.write_text(text, encoding="utf-8")


def _draw(tracker: Tracker, found: Sequence[Standing], score: str) -> str:
    """Draw a line a strategy, with the range over seeds as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for i, (strategy, standing) in enumerate(best_by_strategy(found).items()):
        points = curve(tracker, standing, score)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
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
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
