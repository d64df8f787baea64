"""The files of a report that a sweep's parent run keeps."""

from collections.abc import Mapping
from pathlib import Path

from mmx.report.content import Band, Report, all_bands, report_on
from mmx.report.page import html
from mmx.report.pareto import write_front
from mmx.report.plots import drawable, figures_of_report
from mmx.report.results import Results


def write_report(folder: Path, results: Results) -> list[Path]:
    """Write `report.html` and the plots of it as PNG, as far as there is anything to draw.

    Scores that are no means over samples are not tested: that takes longer than a sweep should wait.
    """
    report = report_on(results, patient=False)
    bands = all_bands(report)
    (folder / "report.html").write_text(html(report, bands), encoding="utf-8")
    return [folder / "report.html", *write_plots(folder, report, bands)]


def write_plots(folder: Path, report: Report, bands: Mapping[str, Band]) -> list[Path]:
    """Write `curves.png`, `differences.png`, `lattice.png`, `pareto_params.png` and `pareto_seconds.png`.

    A sweep of two objectives has `pareto.png` beside, their front.
    """
    figures = figures_of_report(report, bands)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    written = [folder / f"{name}.png" for name in figures]
    results = report.results
    if len(results.objective) == 2 and drawable(results.found, results.objective):
        write_front(folder / "pareto.png", results.found, results.objective)
        written.append(folder / "pareto.png")
    return written
