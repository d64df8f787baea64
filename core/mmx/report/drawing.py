"""How figures look: colours, markers, and SVG whose text is text."""

import io
from collections.abc import Sequence
from typing import Any

from mmx.report.standings import Standing

# Okabe and Ito's palette, which colour-blind readers tell apart; markers and dashes say it once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
GREY = "#767676"
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 3)))


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


def new_figure(width: float = 6.4, height: float = 4.0, fitted: bool = False) -> tuple[Any, Any]:
    """Make an empty figure with one pair of axes.

    `fitted`: measure all labels to make room for them, which takes as long as drawing does.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if fitted else None)
    axis = figure.subplots()
    if not fitted:
        figure.subplots_adjust(left=0.13, right=0.98, bottom=0.13, top=0.97)
    return figure, axis


def svg_of(figure: Any, label: str = "") -> str:
    """Give a matplotlib figure as an SVG element; its text stays text, to be searched and read out.

    `label` is what a screen reader says of it. The same figure gives the same text.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mmx"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    if not label:
        return text
    from markupsafe import escape

    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
