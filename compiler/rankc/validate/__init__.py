"""Proof: the compressed model measured against the original, and the gates that decide."""

from __future__ import annotations

from rankc.validate.compare import validate
from rankc.validate.gates import GateResult, check, check_gates_possible, exit_code, finish
from rankc.validate.schema import Backend, Metrics, check_metrics, schema_text

__all__ = [
    "Backend",
    "GateResult",
    "Metrics",
    "check",
    "check_gates_possible",
    "check_metrics",
    "exit_code",
    "finish",
    "schema_text",
    "validate",
]
