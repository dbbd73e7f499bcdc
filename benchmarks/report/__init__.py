"""The report as people see it: `python -m benchmarks.report.screenshots`."""
