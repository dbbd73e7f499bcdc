"""What a run tells: metrics.json, report.md and .html, junit.xml, the table on the terminal."""

from __future__ import annotations

from rankc.report.files import metrics_json, write_metrics_json, write_reports
from rankc.report.github import append_summary, workflow_commands
from rankc.report.junit import junit_xml
from rankc.report.markdown import report_markdown
from rankc.report.place import Place, place_of
from rankc.report.report_html import report_html
from rankc.report.rows import failures
from rankc.report.search import search_lines
from rankc.report.sites import sites_table, source_of
from rankc.report.terminal import metrics_table

__all__ = [
    "Place",
    "append_summary",
    "failures",
    "junit_xml",
    "metrics_json",
    "metrics_table",
    "place_of",
    "report_html",
    "report_markdown",
    "search_lines",
    "sites_table",
    "source_of",
    "workflow_commands",
    "write_metrics_json",
    "write_reports",
]
