"""Proof: the compressed model measured against the original, and the gates that decide."""

from __future__ import annotations

from rankc.validate.baseline import Baseline, open_baseline, subject_of
from rankc.validate.baseline_file import target_name
from rankc.validate.compare import processor, validate
from rankc.validate.gates import GateResult, check, check_gates_possible, exit_code, finish
from rankc.validate.schema import Backend, Metrics, check_metrics, schema_text

__all__ = [
    "Backend",
    "Baseline",
    "GateResult",
    "Metrics",
    "check",
    "check_gates_possible",
    "check_metrics",
    "exit_code",
    "finish",
    "open_baseline",
    "processor",
    "schema_text",
    "subject_of",
    "target_name",
    "validate",
]
