"""Write what a run leaves for people and machines beside the model."""

from __future__ import annotations

import json
from pathlib import Path

from rankc.report.junit import junit_xml
from rankc.report.layer_rows import Layers
from rankc.report.markdown import Plan, report_markdown
from rankc.report.page import write_page
from rankc.report.place import Place
from rankc.report.report_html import Lock, report_html
from rankc.report.sarif import sarif_json
from rankc.validate.schema import Metrics, check_metrics


def metrics_json(metrics: Metrics) -> str:
    """metrics.json: keys sorted, so that two runs differ only in what was measured.

    Raises:
        pydantic.ValidationError: The structure is not the published one, or a number not finite.
    """
    checked = check_metrics(metrics)
    return json.dumps(checked, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def write_metrics_json(metrics: Metrics, path: Path) -> None:
    """Write metrics.json; raises as `metrics_json` does, before the file is touched."""
    content = metrics_json(metrics)
    path.write_text(content, encoding="utf-8", newline="\n")


def write_reports(
    metrics: Metrics,
    plan: Plan | None,
    folder: Path,
    *,
    layers: Layers | None = None,
    lock: Lock | None = None,
    recipe: str = "",
    place: Place | None = None,
) -> tuple[Path, ...]:
    """Write metrics.json, report.md, junit.xml, report.html and report.sarif into a folder.

    Args:
        metrics: The content of metrics.json.
        plan: The content of plan.json; None: the recipe has exact passes only.
        folder: The bundle.
        layers: The content of layers.json, for the page.
        lock: The content of recipe.lock.json, for the page.
        recipe: The recipe with its defaults filled in, YAML, for the page.
        place: Where the recipe lies; without, there is no report.sarif.

    Returns:
        The paths of what was written.
    """
    machine, human, ci = folder / "metrics.json", folder / "report.md", folder / "junit.xml"
    page = folder / "report.html"
    write_metrics_json(metrics, machine)
    human.write_text(report_markdown(metrics, plan), encoding="utf-8", newline="\n")
    write_page(report_html(metrics, plan, layers=layers, lock=lock, recipe=recipe), page)
    ci.write_bytes(junit_xml(metrics, place))
    if place is None:
        return machine, human, ci, page
    sarif = folder / "report.sarif"
    sarif.write_text(sarif_json(metrics, plan, place), encoding="utf-8", newline="\n")
    return machine, human, ci, page, sarif
