from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError
from rich.console import Console

from rankc.planning import Plan
from rankc.recipe import Gate
from rankc.report import (
    failures,
    junit_xml,
    metrics_json,
    metrics_table,
    report_markdown,
    write_reports,
)
from rankc.report import text as words
from rankc.validate import check_metrics, finish, schema_text
from rankc.validate.schema import LatencyHow, LatencyRow, Measured, Metrics, Percentiles

SCHEMA = Path(__file__).parents[2] / "docs" / "metrics.schema.json"
TIMES, MINUS = words.TIMES, words.MINUS

PLAN: dict[str, Any] = {
    "choices": [
        {
            "pass_name": "lowrank",
            "site": "mlp|1",
            "rank": 48,
            "full_rank": 400,
            "error": 0.00214,
            "size_bytes": 154_000,
            "dense_size_bytes": 640_000,
            "reason": "rank 48 of 400: 4.16x fewer bytes for 0.00011 of loss; dense costs more",
        }
    ],
    "skips": [{"pass_name": "embedding", "name": "emb_wind", "reason": "rank 16 is cheapest"}],
    "limits": [{"unit": "bytes", "planned": 1_265_000, "budget": 1_270_000}],
    "loss": 1.2e-4,
    "gap": 0.004,
    "exact": False,
    "strategy": "optimal",
    "sensitivity": "gradient",
    "times": "",
}


def measured(
    original: float, compressed: float, interval: tuple[float, float] | None = None
) -> Measured:
    return Measured(
        original=original,
        compressed=compressed,
        difference=compressed - original,
        interval=interval,
    )


def ctr(*gates: Gate) -> Metrics:
    row = LatencyRow(
        original=Percentiles(p50_ms=0.0921, p90_ms=0.12, p95_ms=0.12, p99_ms=0.12),
        compressed=Percentiles(p50_ms=0.039, p90_ms=0.05, p95_ms=0.05, p99_ms=0.05),
        ratio=0.4234,
        interval=(0.40, 0.44),
        pairs=60,
        calls_per_sample=(33, 77),
    )
    metrics = Metrics(
        format=1,
        recipe="ctr",
        passed=False,
        gates=[],
        rows=32_735,
        output="p",
        metrics={
            "size_bytes": measured(15_182_684, 1_267_309),
            "params": measured(3_770_000, 1_000_000),
            "auc": measured(0.81596, 0.81593, (-0.00021, 0.00018)),
            "mean_abs_err": measured(0, 0.0123, (0.0122, 0.0124)),
            "peak_memory_bytes": measured(61e6, 31e6),
        },
        unavailable={"macs": "compressed model, node 'x' (Conv): no shapes"},
        ratios={"size_bytes": 15_182_684 / 1_267_309, "params": 3.77},
        latency={"1": row},
        latency_how=LatencyHow(
            scope="session.run",
            clock="thread CPU time, 1 thread",
            device="some processor",
            backend="onnxruntime 1.2.3",
            pinned=True,
            level=0.99,
        ),
        layers=[],
        memory_batch=256,
        backends={
            "onnxruntime-fp32": {
                "built": True,
                "ran": True,
                "precision": "fp32",
                "size_bytes": 1_267_309,
            },
            "tensorrt-rtx-fp16": {
                "built": True,
                "ran": False,
                "precision": "fp16",
                "size_bytes": 900_000,
                "note": "no GPU here",
            },
            "tensorrt-fp16": {
                "built": False,
                "ran": False,
                "precision": "fp16",
                "size_bytes": 0,
                "note": "not installed",
            },
        },
        environment={"numpy": "2.0"},
    )
    return finish(metrics, gates)


HELD = Gate("size_ratio", "threshold", 10)
SLOW = Gate("latency_ratio", "threshold", 0.3, batch=1)
WORSE = Gate("auc", "max-degradation", 0.00001)


def printed(metrics: Metrics, width: int = 80, *, everything: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(metrics_table(metrics, everything=everything))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_published_schema_is_current() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(schema_text()), (
        "write rankc.validate.schema_text() to docs/metrics.schema.json"
    )


def test_schema_promises_what_a_ci_reads() -> None:
    schema = json.loads(schema_text())
    assert {"passed", "gates", "metrics", "ratios", "latency", "backends"} <= set(
        schema["required"]
    )
    for name, keys in {
        "Measured": {"original", "compressed", "difference", "interval"},
        "LatencyRow": {"original", "compressed", "ratio"},
        "Backend": {"built", "ran", "precision", "size_bytes"},
    }.items():
        assert keys <= set(schema["$defs"][name]["required"])


def test_metrics_json_comes_back_as_it_was_and_is_sorted() -> None:
    metrics = ctr(HELD, SLOW)
    text = metrics_json(metrics)
    again = json.loads(text)
    assert check_metrics(again) == check_metrics(metrics)
    assert text == json.dumps(again, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert text == metrics_json(ctr(HELD, SLOW))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "high", None])
def test_metrics_json_refuses_what_is_no_finite_number(bad: Any, tmp_path: Path) -> None:
    metrics = ctr()
    metrics["metrics"]["auc"]["compressed"] = bad
    with pytest.raises(ValidationError, match=r"metrics\.auc\.compressed"):
        write_reports(metrics, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_metrics_json_refuses_unknown_keys() -> None:
    metrics: Any = ctr()
    metrics["metrics"]["auc"]["p_valeu"] = 0.05
    with pytest.raises(ValidationError, match=r"metrics\.auc\.p_valeu"):
        metrics_json(metrics)


def test_terminal_table_fits_80_columns_and_marks_gates() -> None:
    lines = printed(ctr(HELD, SLOW, WORSE)).splitlines()
    assert max(map(len, lines)) <= 80
    cells = {line[:14].strip(): line for line in lines}
    assert f"11.98{TIMES} smaller" in cells["size"]
    assert f"≥ 10{TIMES}" in cells["size"]
    assert cells["size"].split()[-1] == "pass"
    assert cells["auc"].split()[-1] == "undecided"
    assert f"{MINUS}0.00003 \N{PLUS-MINUS SIGN}0.00020" in cells["auc"]
    assert "92.1" in cells["latency b1"]
    assert cells["latency b1"].split()[-1] == "FAIL"
    assert f"0.51{TIMES}" in cells["peak memory"]
    assert "parameters" not in cells


def test_times_are_told_with_what_they_were_measured_on() -> None:
    first = printed(ctr(HELD)).lstrip().splitlines()[0]
    assert first.startswith("Times: some processor, onnxruntime 1.2.3, thread CPU time, 1 thread")
    assert "on some processor, onnxruntime 1.2.3, and nowhere else" in report_markdown(ctr())
    assert "no time and no gate is of them: tensorrt-" in report_markdown(ctr())
    untimed = ctr()
    untimed["latency"] = {}
    assert "some processor" not in printed(untimed)


def test_the_ten_layers_that_take_longest_are_listed() -> None:
    metrics = ctr()
    metrics["layer_times"] = [
        {"layer": f"l{k}", "original_ms": k, "compressed_ms": 0.5, "nodes": (1, 1)}
        for k in range(1, 13)
    ]
    report = report_markdown(metrics)
    assert "| l12 | 12.0 ms | 500 µs |\n| l11 |" in report
    assert "| l3 |" in report
    assert "| l2 |" not in report
    assert "| all 12 | 78.0 ms | 6.00 ms |" in report


def test_load_and_cold_start_are_rows() -> None:
    metrics = ctr()
    metrics["startup"] = {
        "original": {"load_ms": 20.0, "cold_start_ms": 400.0},
        "compressed": {"load_ms": 10.0, "cold_start_ms": 380.0},
    }
    assert f"| load | 20.0 ms | 10.0 ms | 0.50{TIMES} |" in report_markdown(metrics)
    assert f"| cold start | 400 ms | 380 ms | 0.95{TIMES} |" in report_markdown(metrics)


def test_a_gate_or_the_wish_for_everything_shows_more_rows() -> None:
    assert "parameters" in printed(ctr(Gate("params_ratio", "threshold", 2)))
    assert "parameters" in printed(ctr(), everything=True)


def test_table_names_with_markup_are_printed_as_they_are() -> None:
    metrics = ctr(HELD)
    metrics["gates"][0]["text"] = "[red]x[/red]"
    assert "[red]x[/red]" in printed(metrics, width=120)


def test_failures_name_accuracy_first() -> None:
    told = failures(ctr(SLOW, HELD, WORSE))
    assert [line.split()[0] for line in told] == ["undecided:", "latency_ratio"]
    tiny = dataclasses.replace(WORSE, metric="mean_abs_err", goal="threshold")
    told = failures(ctr(WORSE, tiny))
    assert [line.split()[0] for line in told] == ["mean_abs_err", "undecided:"]


def test_a_gate_that_only_warns_is_told_as_a_warning() -> None:
    report = report_markdown(ctr(dataclasses.replace(WORSE, undecided="warn")))
    assert report.startswith("# ctr: PASSED\n\nThe only gate held.\n\nWarning: undecided: auc fell")
    assert "| undecided, warning |" in report


def test_report_says_the_verdict_first_then_everything_else() -> None:
    report = report_markdown(ctr(HELD, WORSE), PLAN)
    assert report.startswith(
        "# ctr: FAILED\n\n1 of 2 gates failed, 1 of them undecided:\n\n- undecided: auc fell by"
    )
    assert "| drop ≤ 1.0e-05 | **undecided** |" in report
    assert "| auc | 0.81596 | 0.81593 |" in report
    assert f"({MINUS}0.00021 to +0.00018)" in report
    assert r"| mlp\|1 | lowrank | 48 of 400 | 0.214 % | 154,000 of 640,000 | rank 48" in report
    assert "| emb_wind | embedding | rank 16 is cheapest |" in report
    assert "Planned 1,265,000 bytes; budget 1,270,000 bytes;" in report
    assert "| tensorrt-rtx-fp16 | fp16 | built, not run | 900.00 kB | no GPU here |" in report
    assert "| tensorrt-fp16 | fp16 | not built |" in report
    assert "| onnxruntime-fp32 | fp32 | built and run |" in report
    assert "thread CPU time, 1 thread" in report
    assert "- macs: compressed model, node 'x' (Conv): no shapes" in report
    assert "| numpy | 2.0 |" in report


def test_report_says_what_the_plan_is_worth() -> None:
    other = {"unit": "ms", "planned": 1.25, "budget": 1.5}
    proven = PLAN | {"limits": [*PLAN["limits"], other], "exact": True, "gap": 0.0}
    assert "at most 0.4 % of that could be saved by another plan." in report_markdown(ctr(), PLAN)
    report = report_markdown(ctr(), proven)
    assert "budget 1,270,000 bytes; planned 1.25 ms; budget 1.5 ms; predicted" in report
    assert "no other plan within the budget loses less." in report
    uniform = report_markdown(ctr(), PLAN | {"strategy": "uniform"})
    assert "ranks chosen by the strategy uniform" in uniform


@pytest.mark.parametrize(
    ("gates", "first"),
    [
        ((), "# ctr: PASSED\n\nThe recipe sets no gates"),
        ((HELD,), "# ctr: PASSED\n\nThe only gate held."),
        ((HELD, Gate("params", "threshold", 1e7)), "# ctr: PASSED\n\nAll 2 gates held."),
    ],
)
def test_report_of_what_passed(gates: tuple[Gate, ...], first: str) -> None:
    assert report_markdown(ctr(*gates)).startswith(first)


def test_report_of_an_empty_plan_and_of_none() -> None:
    empty = report_markdown(ctr(), json.loads(Plan((), (), (), 0.0, 0.0).to_json()))
    assert "No site was rewritten." in empty
    assert "Nothing was skipped." in empty
    assert "## Sites" not in report_markdown(ctr(), None)
    with pytest.raises(KeyError, match="limits"):
        report_markdown(ctr(), {"choices": []})


def test_every_table_of_the_report_is_rectangular() -> None:
    for block in report_markdown(ctr(HELD, WORSE), PLAN).split("\n\n"):
        if block.startswith("|"):
            bars = {line.replace(r"\|", "").count("|") for line in block.splitlines()}
            assert len(bars) == 1


def test_junit_has_a_case_a_gate_and_the_failures() -> None:
    root = ElementTree.fromstring(junit_xml(ctr(HELD, SLOW, WORSE)))
    (suite,) = root
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("ctr", "3", "2")
    kinds = [(case.get("classname"), [part.tag for part in case]) for case in suite]
    assert kinds == [
        ("rankc.ctr.performance", ["system-out"]),
        ("rankc.ctr.performance", ["failure"]),
        ("rankc.ctr.accuracy", ["failure"]),
    ]
    failure = suite[1][0]
    assert failure.get("type") == "performance gate"
    assert "latency_ratio at batch 1 is 0.423" in (failure.get("message") or "")


def test_junit_survives_markup_and_control_characters() -> None:
    metrics = ctr(HELD)
    metrics["gates"][0]["message"] = 'a < b & "c" \x00\x1b ]]> \ud800'
    metrics["gates"][0]["passed"] = False
    (suite,) = ElementTree.fromstring(junit_xml(metrics))
    assert suite[0][0].text == 'a < b & "c" ?? ]]> ?'


def test_four_files_are_written(tmp_path: Path) -> None:
    metrics = ctr(HELD)
    written = write_reports(metrics, PLAN, tmp_path)
    assert [path.name for path in written] == [
        "metrics.json",
        "report.md",
        "junit.xml",
        "report.html",
    ]
    assert written[0].read_text(encoding="utf-8") == metrics_json(metrics)
    assert written[1].read_text(encoding="utf-8") == report_markdown(metrics, PLAN)
    assert written[2].read_bytes() == junit_xml(metrics)


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (words.size(999), "999 B"),
        (words.size(15_182_684), "15.18 MB"),
        (words.amount(3_770_000), "3.77 M"),
        (words.duration(0.0921), "92.1 \N{MICRO SIGN}s"),
        (words.duration(3.2), "3.20 ms"),
        (words.duration(5400), "5.40 s"),
        (words.signed(-0.00003), f"{MINUS}0.00003"),
        (words.signed(0.00005), "+0.00005"),
        (words.signed(-0.0000001), "0.00000"),
        (words.short(-2.1e-7), f"{MINUS}2.1e-07"),
        (words.smaller(12), f"12.00{TIMES} smaller"),
        (words.smaller(0.5), f"2.00{TIMES} larger"),
        (words.smaller(1.0), "the same"),
    ],
)
def test_numbers_as_people_read_them(got: str, expected: str) -> None:
    assert got == expected
