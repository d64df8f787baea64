"""How figures look: colours, markers, and SVG whose text is text."""

import io
from collections.abc import Sequence
from typing import Any

from mmx.report.standings import Standing

# Okabe and Ito's palette, which colour-blind readers tell apart; markers and dashes say it once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
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


def new_figure(width: float = 8.0, height: float = 4.5) -> tuple[Any, Any]:
    """Make an empty figure with one pair of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


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
