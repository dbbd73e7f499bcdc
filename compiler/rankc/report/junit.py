"""Gates as a JUnit file, which every CI can show: a test case a gate."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from rankc.report.place import Place
from rankc.validate.schema import GateRow, Metrics

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(metrics: Metrics, place: Place | None = None) -> bytes:
    """The file's content, UTF-8. Characters that XML has no way to write become `?`.

    Args:
        metrics: The content of metrics.json.
        place: Where the recipe lies, for `file` and `line` of the cases.
    """
    gates = metrics["gates"]
    failed = sum(not gate["passed"] for gate in gates)
    counts = {"tests": str(len(gates)), "failures": str(failed), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    name = _clean(metrics["recipe"])
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    for index, gate in enumerate(gates):
        case = _add(suite, gate, f"rankc.{name}.{gate['kind']}")
        if place is not None:
            case.set("file", _clean(place.uri))
            case.set("line", str(place.gate(index) or 1))
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _add(suite: ElementTree.Element, gate: GateRow, classname: str) -> ElementTree.Element:
    at = "" if gate["batch"] is None else f" at batch {gate['batch']}"
    name = f"{gate['metric']}{at}: {gate['text']}"
    case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": _clean(name)})
    message = _clean(gate["message"])
    if gate["passed"]:
        warned = "warning, " if gate["verdict"] == "undecided" else ""
        ElementTree.SubElement(case, "system-out").text = f"{warned}{message}"
    else:
        word = ", undecided" if gate["verdict"] == "undecided" else ""
        kind = {"type": f"{gate['kind']} gate{word}", "message": message}
        ElementTree.SubElement(case, "failure", kind).text = message
    return case


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
