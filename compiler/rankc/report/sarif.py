"""Gates as SARIF 2.1.0, which code hosts show at the line of the recipe that asks for them.

OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, 2020.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from rankc.report.place import Place, notes
from rankc.validate.schema import GateRow, Metrics

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_NOTE = "layer-left-alone"


def sarif_json(metrics: Metrics, plan: Mapping[str, Any] | None, place: Place) -> str:
    """The file's content: a result for each gate that did not hold, a note for each layer left.

    Args:
        metrics: The content of metrics.json.
        plan: The content of plan.json, or None.
        place: Where the recipe lies.
    """
    gates = list(enumerate(metrics["gates"]))
    results = [_gate(i, gate, place) for i, gate in gates if _told(gate)]
    results += [_note(name, text, place) for name, text in notes(metrics, plan)]
    rules = _rules(metrics, bool(notes(metrics, plan)))
    driver: dict[str, Any] = {"name": "rankc", "rules": rules}
    if version := metrics["environment"].get("rankc"):
        driver["version"] = version
    ids = [rule["id"] for rule in rules]
    for result in results:
        result["ruleIndex"] = ids.index(result["ruleId"])
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"rankc/{metrics['recipe']}/"},
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    whole = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _told(gate: GateRow) -> bool:
    return gate["verdict"] != "pass"


def _rule(gate: GateRow) -> str:
    return f"{gate['metric']}/{gate['goal']}"


def _rules(metrics: Metrics, layers: bool) -> list[dict[str, Any]]:
    rules = {
        _rule(gate): {
            "id": _rule(gate),
            "shortDescription": {"text": f"Gate on {gate['metric']}: {gate['goal']}"},
            "defaultConfiguration": {"level": "error"},
            "properties": {"kind": gate["kind"]},
        }
        for gate in metrics["gates"]
    }
    if layers:
        rules[_NOTE] = {
            "id": _NOTE,
            "shortDescription": {"text": "A layer that stays as it was, and why"},
            "defaultConfiguration": {"level": "note"},
        }
    return list(rules.values())


def _gate(index: int, gate: GateRow, place: Place) -> dict[str, Any]:
    level = "warning" if gate["passed"] else "error"
    return {
        "ruleId": _rule(gate),
        "level": level,
        "message": {"text": gate["message"]},
        "locations": [_location(place, gate.get("line") or place.gate(index))],
        "partialFingerprints": {"gate/v1": _digest(place.uri, str(index), _rule(gate))},
    }


def _note(name: str, text: str, place: Place) -> dict[str, Any]:
    return {
        "ruleId": _NOTE,
        "level": "note",
        "message": {"text": f"{name}: {text}"},
        "locations": [_location(place, place.pass_(name))],
        "partialFingerprints": {"layer/v1": _digest(place.uri, name, text)},
    }


def _location(place: Place, line: int | None) -> dict[str, Any]:
    """Without a line (what `--set` says has none) code hosts need one all the same: the first."""
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": quote(place.uri), "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": line or 1},
        }
    }


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
