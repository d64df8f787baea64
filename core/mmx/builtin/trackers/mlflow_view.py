"""The prepared view of MLflow's runs page: robustness curves first, runs grouped by what the sweep varies.

It is an experiment tag in the page's own format (read off MLflow 3.17's page, where it was seen to work). The
format is not documented; where a later page does not understand it, the plain runs page opens instead.
"""

import json
from collections.abc import Sequence

KEY = "robustness"
TAG = f"mlflow.sharedViewState.{KEY}"
PREFIXES = ("robustness", "pattern", "summary", "contribution", "cost", "missing", "val", "train")
LINES = ("robustness", "missing", "val", "train")
SEEN = ((3, 15), (3, 17))
"""The first and the last minor version of MLflow whose page was seen to open on the view."""
LONGEST = 18_000
"""MLflow takes 20,000 characters in a tag of an experiment."""


def view_state(group_by: Sequence[str], metrics: Sequence[str]) -> str:
    """Give the tag's value: curves as lines over percent missing, single figures as bars."""
    keys = [{"mode": "param", "groupByData": name} for name in group_by]
    cards = [_card(m) for prefix in PREFIXES for m in metrics if m.startswith(f"{prefix}/")]
    sections = [
        {"uuid": prefix, "name": prefix, "display": prefix in PREFIXES[:3], "isReordered": True}
        for prefix in PREFIXES
    ]
    while True:
        state = {
            "groupBy": {"aggregateFunction": "average", "groupByKeys": keys},
            "compareRunCharts": cards,
            "compareRunSections": sections,
            "isAccordionReordered": True,
        }
        if len(json.dumps(state)) <= LONGEST or not cards:
            return json.dumps(state)
        cards.pop()  # the page adds charts for what is left out, at the end


def _card(metric: str) -> dict[str, object]:
    """Describe one chart."""
    prefix = metric.split("/", maxsplit=1)[0]
    own: dict[str, object] = {
        "uuid": metric,
        "metricSectionId": prefix,
        "deleted": False,
        "isGenerated": True,
        "metricKey": metric,
        "runsCountToCompare": 100,
    }
    if prefix not in LINES:
        return {**own, "type": "BAR"}
    return {
        **own,
        "type": "LINE",
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "displayPoints": True,
    }


def is_known(version: str) -> bool:
    """Tell whether the page of an MLflow was seen to understand the view."""
    parts = version.split(".")
    return SEEN[0] <= (int(parts[0]), int(parts[1])) <= SEEN[1]


def instructions(state: str) -> str:
    """Say how to come to the view by hand; `state` is the tag's value, if there is one."""
    keys = (
        [key["groupByData"] for key in json.loads(state)["groupBy"]["groupByKeys"]] if state else ["strategy"]
    )
    return (
        f"if the page shows no curves: choose the chart view, 'Group by' {', '.join(keys)}, aggregate by "
        f"average, and look at the section 'robustness'"
    )


def page_of(experiment: str) -> str:
    """Give the page's address below a server's root."""
    return f"/#/experiments/{experiment}/runs?viewStateShareKey={KEY}&compareRunsMode=CHART"
