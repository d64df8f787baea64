"""A report's tables as LaTeX, for the package booktabs."""

import re
from collections.abc import Mapping

from mmx.report.comparison import sentences
from mmx.report.content import Report, averaged, missing, spoken
from mmx.report.tables import FIGURES, BySeed, Row, Table, told

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
SIGNS = {"–": "--", "±": r"$\pm$", "−": "$-$", "×": r"$\times$"}


def escaped(text: str) -> str:
    """Write a text so that LaTeX shows it as it is."""
    return re.sub(r".", lambda found: {**SPECIAL, **SIGNS}.get(found[0], found[0]), text, flags=re.DOTALL)


def latex(report: Report) -> str:
    """Write two tables an axis, curve and figures; the best of each column is bold."""
    head = ["% needs \\usepackage{booktabs}", *(f"% {told_of}" for told_of in sentences(report.comparisons))]
    head += [f"% before you compare: {warning}" for warning in report.warnings]
    tables = []
    for table in report.tables:
        tables += [_table(report, table, curves=True), _table(report, table, curves=False)]
    return "\n".join([*(line.replace("\n", " ") for line in head), "", *tables])


def _table(report: Report, table: Table, curves: bool) -> str:
    columns: list[int | str] = [*table.rates] if curves else [*table.names]
    heads = [f"{c}\\,\\%" if isinstance(c, int) else escaped(FIGURES[c]) for c in columns]
    best = {c: table.best(c) for c in columns}
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\small",
        f"\\caption{{{_caption(report, table, curves)}}}",
        f"\\label{{tab:{_slug(table.axis)}-{'curve' if curves else 'figures'}}}",
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        _line([escaped(table.axis), *heads]),
        r"\midrule",
        *(_line([escaped(row.label), *_cells(row, best)]) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _cells(row: Row, best: Mapping[int | str, set[str]]) -> list[str]:
    cells = []
    for column, winners in best.items():
        cells.append(_cell(row.values(column), str(column), row.label in winners))
    return cells


def _cell(values: BySeed | None, figure: str, bold: bool) -> str:
    """Write mean and spread in mathematical type; the mean is bold where it is the best."""
    if not values:
        return "--"
    middle, _, spread = told(values, figure).replace(",", "{,}").partition(" ± ")
    middle = f"\\mathbf{{{middle}}}" if bold else middle
    return f"${middle} \\pm {spread}$" if spread else f"${middle}$"


def _caption(report: Report, table: Table, curves: bool) -> str:
    figures = averaged([row.standing for row in table.rows])
    what = f"{spoken(report.score)} by percent missing of {missing(report.target)}"
    told_of = what if curves else f"Figures of the curve of {what}, and costs"
    text = (
        f"{told_of[0].upper()}{told_of[1:]}, sweep {report.results.name}: {figures}, test split; "
        f"the best of each column in bold. Points were picked on the validation split."
    )
    return escaped(text)
