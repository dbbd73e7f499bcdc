"""What a run tells: metrics.json, report.md and .html, junit.xml, the table on the terminal."""

from __future__ import annotations

from rankc.report.files import metrics_json, write_metrics_json, write_reports
from rankc.report.junit import junit_xml
from rankc.report.markdown import report_markdown
from rankc.report.report_html import report_html
from rankc.report.rows import failures
from rankc.report.sites import sites_table, source_of
from rankc.report.terminal import metrics_table

__all__ = [
    "failures",
    "junit_xml",
    "metrics_json",
    "metrics_table",
    "report_html",
    "report_markdown",
    "sites_table",
    "source_of",
    "write_metrics_json",
    "write_reports",
]
