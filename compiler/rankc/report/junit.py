"""Gates as a JUnit file, which every CI can show: a test case a gate."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from rankc.validate.schema import GateRow, Metrics

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(metrics: Metrics) -> bytes:
    """The file's content, UTF-8. Characters that XML has no way to write become `?`."""
    gates = metrics["gates"]
    failed = sum(not gate["passed"] for gate in gates)
    counts = {"tests": str(len(gates)), "failures": str(failed), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    name = _clean(metrics["recipe"])
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    for gate in gates:
        _add(suite, gate, f"rankc.{name}.{gate['kind']}")
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _add(suite: ElementTree.Element, gate: GateRow, classname: str) -> None:
    at = "" if gate["batch"] is None else f" at batch {gate['batch']}"
    name = f"{gate['metric']}{at}: {gate['text']}"
    case = ElementTree.SubElement(suite, "testcase", {"classname": classname, "name": _clean(name)})
    message = _clean(gate["message"])
    if gate["passed"]:
        ElementTree.SubElement(case, "system-out").text = message
    else:
        word = ", undecided" if gate["verdict"] == "undecided" else ""
        kind = {"type": f"{gate['kind']} gate{word}", "message": message}
        ElementTree.SubElement(case, "failure", kind).text = message


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
