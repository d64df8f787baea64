"""The Pareto front of a sweep with several objectives, and its plot.

Points are picked for the front by their values on the validation split; the plot shows them at their figures
from the test split.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from mmx.errors import InputError
from mmx.report.drawing import looks, method_of, svg_of
from mmx.report.standings import Standing, selected, why_pruned

WIDE_RANGE = 20
"""Costs whose largest is more than so many times the smallest are drawn on a log axis."""
CAPTION = (
    "Figures from the test split, mean over seeds (bars: standard deviation). The front (filled points) was\n"
    "picked on the validation split, so that one of its points may lie behind another here."
)


def front(found: Sequence[Standing], objective: Mapping[str, str]) -> list[Standing]:
    """Give the points that no other point beats, best first by the first objective.

    One point beats another where it is at least as good by every objective, and better by one. Values are
    means over seeds; those of summaries are from the validation split. Equal points stay together. A point
    that was pruned, or lacks a value on any seed, is never on the front.
    """
    valued = [(s, _values(s, objective)) for s in found if not why_pruned(s.records)]
    whole = [(s, values) for s, values in valued if not any(map(isnan, values))]
    known = {values for _, values in whole}
    kept = [(s, values) for s, values in whole if not any(_beats(other, values) for other in known)]
    return [s for s, _ in sorted(kept, key=lambda pair: ([-v for v in pair[1]], pair[0].point))]


def _values(standing: Standing, objective: Mapping[str, str]) -> tuple[float, ...]:
    """Give the values that count, each turned so that more is better."""
    means = {f: sum(selected(r, f) for r in standing.records) / standing.seeds for f in objective}
    return tuple(means[f] if direction == "maximize" else -means[f] for f, direction in objective.items())


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def write_front(path: Path, found: Sequence[Standing], objective: Mapping[str, str]) -> None:
    """Draw two objectives against each other, as SVG or PNG by the path's suffix.

    InputError where there are not two, or no point has both figures, or the suffix is another.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in ("svg", "png"):
        raise InputError(f"'{path.name}' is no picture that can be written; end it with .svg or .png")
    figure = draw_front(found, objective)
    if kind == "svg":
        path.write_text(svg_of(figure), encoding="utf-8")
    else:
        figure.savefig(path, dpi=150)


def draw_front(found: Sequence[Standing], objective: Mapping[str, str]) -> Any:
    """Draw the points by strategy or method, and the front as steps; a cost lies on the horizontal axis."""
    from matplotlib.figure import Figure

    across, up = _axes(objective)
    drawn = [s for s in found if s.values(across) and s.values(up)]
    if not drawn:
        raise InputError(f"no finished point has both {across} and {up}; there is nothing to draw")
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.subplots()
    on_front = {s.point for s in front(found, objective)}
    corners = sorted((s.mean(across), s.mean(up)) for s in drawn if s.point in on_front)
    if corners:
        style = "steps-post" if objective[across] == "minimize" else "steps-pre"
        axis.plot(*zip(*corners, strict=True), drawstyle=style, color="#555555", linewidth=1, label="front")
    for label, look in looks(found).items():
        own = [s for s in drawn if method_of(s) == label]
        kept = [s for s in own if s.point in on_front]
        rest = [s for s in own if s.point not in on_front]
        _draw_points(axis, kept, across, up, label, look, hollow=False)
        _draw_points(axis, rest, across, up, "" if kept else label, look, hollow=True)
    axis.set(xlabel=_label(across, objective), ylabel=_label(up, objective))
    axis.set_xscale("log" if _is_wide(across, drawn) else "linear")
    axis.set_yscale("log" if _is_wide(up, drawn) else "linear")
    axis.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside right upper")
    figure.supxlabel(CAPTION, fontsize="small", color="#444444")
    return figure


def _axes(objective: Mapping[str, str]) -> tuple[str, str]:
    """Name the figures of the horizontal and the vertical axis."""
    if len(objective) != 2:
        raise InputError(f"search.objective: a Pareto plot shows two figures, not {len(objective)}")
    first, second = objective
    swapped = second.startswith("cost/") or not first.startswith("cost/")
    return (second, first) if swapped else (first, second)


def _draw_points(
    axis: Any,
    points: Sequence[Standing],
    across: str,
    up: str,
    label: str,
    look: tuple[str, str],
    hollow: bool,
) -> None:
    """Draw points of one strategy; an empty label keeps them out of the legend."""
    if not points:
        return
    axis.errorbar(
        [s.mean(across) for s in points],
        [s.mean(up) for s in points],
        xerr=[s.spread(across) for s in points],
        yerr=[s.spread(up) for s in points],
        linestyle="none",
        elinewidth=0.8,
        color=look[0],
        marker=look[1],
        markerfacecolor="none" if hollow else look[0],
        alpha=0.6 if hollow else 1.0,
        label=label,
    )


def _label(figure: str, objective: Mapping[str, str]) -> str:
    name = figure.split("/", maxsplit=1)[1].replace("_", " ")
    return f"{name} ({'higher' if objective[figure] == 'maximize' else 'lower'} is better)"


def _is_wide(figure: str, drawn: Sequence[Standing]) -> bool:
    values = [s.mean(figure) for s in drawn]
    return figure.startswith("cost/") and min(values) > 0 and max(values) > WIDE_RANGE * min(values)
