"""What a report is made of, with everything that may be in it."""

from __future__ import annotations

from typing import Any

from rankc.validate import check_metrics
from rankc.validate.schema import Metrics

EVIL = (
    "<script>alert(1)</script>&\"'\x01\x9b",
    "\u202eleft\u202c to right \u05e9\u05dc\u05d5\u05dd",
    "a" * 300,
    "a/very.long_name/" * 20,
    "]]>--><!--",
    "{{ 7*7 }}{% raw %}",
)


def layer(site: str = "mlp.0", **more: Any) -> dict[str, Any]:
    """An entry of layers.json."""
    return {
        "site": site,
        "pass_name": "lowrank",
        "form": "",
        "rank": 2,
        "full_rank": 6,
        "shape": [6, 8],
        "operator": "Gemm",
        "error": 0.05,
        "energy": 0.95,
        "energies_of": 6,
        "energies_form": "",
        "energies": [0.6, 0.35, 0.03, 0.015, 0.004, 0.001],
        "costs": {"size_bytes": 112, "macs": 28, "parameters": 28},
        "dense_costs": {"size_bytes": 192, "macs": 48, "parameters": 48},
        "reason": "rank 2 of 6: 1.71x fewer bytes for 0.00011 of loss",
        "smaller": None,
        "larger": None,
        "loss": 1.1e-4,
    } | more


def layers(*found: dict[str, Any]) -> dict[str, Any]:
    """The content of layers.json."""
    return {"format": 1, "layers": list(found)}


def plan(*skips: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    """The content of plan.json."""
    return {
        "choices": [],
        "skips": [dict(zip(("name", "pass_name", "reason"), skip, strict=True)) for skip in skips],
        "limits": [{"unit": "bytes", "planned": 1_265_000, "budget": 1_270_000}],
        "loss": 1.2e-4,
        "gap": 0.004,
        "exact": False,
        "strategy": "optimal",
        "sensitivity": "gradient",
        "times": "",
    } | more


LOCK = {
    "format": 1,
    "python": "3.11.7",
    "packages": {"numpy": "2.4.6", "onnx": "1.23.2"},
    "seed": 7,
    "sha256": {"recipe": "ab" * 32, "model": "cd" * 32},
}


def gate(state: str = "pass", **more: Any) -> dict[str, Any]:
    """A gate on the drop of auc: pass, fail, undecided."""
    seen = {"pass": (3e-5, (-1e-4, 2e-4)), "fail": (4e-3, (3e-3, 5e-3))}
    observed, interval = seen.get(state, (9e-4, (5e-4, 1.3e-3)))
    needed = 120_000 if state == "undecided" else None
    return {
        "metric": "auc",
        "goal": "max-degradation",
        "value": 0.001,
        "batch": None,
        "kind": "accuracy",
        "observed": observed,
        "passed": state == "pass",
        "verdict": state,
        "interval": interval,
        "rows_needed": needed,
        "line": 31,
        "text": "drop ≤ 0.001",
        "message": f"auc fell by {observed}, the gate allows 0.001",
    } | more


def pair(before: float, after: float, interval: tuple[float, float] | None = None) -> Any:
    """A metric of both models."""
    return {
        "original": before,
        "compressed": after,
        "difference": after - before,
        "interval": interval,
    }


def point(budget: float, auc: float, passed: bool, *, chosen: bool = False) -> dict[str, Any]:
    """A plan that a search tried."""
    return {
        "budget": budget,
        "unit": "bytes",
        "values": {"auc": auc, "size_bytes": budget - 100},
        "loss": 0.82 - auc,
        "passed": passed,
        "efficient": True,
        "chosen": chosen,
    }


def timed(site: str = "mlp.0", ratio: float = 0.4, verdict: str = "kept") -> dict[str, Any]:
    """A layer that was timed."""
    found = {
        size: {"ratio": ratio, "interval": (ratio - 0.02, ratio + 0.02)} for size in ("1", "32")
    }
    return {
        "site": site,
        "pass_name": "lowrank",
        "rank": 2,
        "form": "",
        "verdict": verdict,
        "latency": found,
    }


def proof(**more: Any) -> Metrics:
    """The content of metrics.json."""
    times = {"p50_ms": 0.09, "p90_ms": 0.1, "p95_ms": 0.12, "p99_ms": 0.13}
    row = {
        "original": times,
        "compressed": times,
        "ratio": 0.42,
        "interval": (0.4, 0.44),
        "pairs": 60,
        "calls_per_sample": (33, 77),
    }
    how = {
        "scope": "session.run",
        "clock": "thread CPU time, 1 thread",
        "device": "some processor",
        "backend": "onnxruntime 1.2.3",
        "pinned": True,
        "level": 0.99,
    }
    gates = more.get("gates", [gate()])
    return check_metrics(
        {
            "format": 1,
            "recipe": "ctr",
            "passed": all(one["passed"] for one in gates),
            "gates": gates,
            "rows": 32_735,
            "output": "p",
            "metrics": {
                "size_bytes": pair(15_182_684, 1_267_309),
                "auc": pair(0.81596, 0.81593, (-0.00021, 0.00018)),
            },
            "unavailable": {"macs": "node 'x' (Conv): no shapes"},
            "ratios": {"size_bytes": 11.98},
            "latency": {"1": row},
            "latency_how": how,
            "layers": [timed()],
            "memory_batch": 256,
            "backends": {},
            "environment": {"cpu": "some processor", "rankc": "0.1.0"},
        }
        | more
    )


def lesson(stage: str = "recover", **more: Any) -> dict[str, Any]:
    """A training of metrics.json."""
    return {
        "stage": stage,
        "epochs": 2.0,
        "steps": 80,
        "seconds": 12.5,
        "stopped": "all steps made",
        "looks": [
            {"epoch": 0.0, "loss": 0.5, "metrics": {}},
            {"epoch": 1.0, "loss": 0.3, "metrics": {"auc": 0.8}},
            {"epoch": 2.0, "loss": 0.35, "metrics": {"auc": 0.79}},
        ],
        "best": 1.0,
        "kept": True,
        "why": "on 900 rows held out that chose nothing, the loss fell by 0.2 ± 0.01",
    } | more


def everything() -> dict[str, Any]:
    """What may come after a search on two targets, as arguments of `report_html`."""
    ends = (-3e-4, 1e-4)
    names = ("floor", "compression", "lowering", "total")
    split = dict.fromkeys(names, -0.0001) | {f"{name}_interval": ends for name in names}
    return {
        "metrics": proof(
            split={"tensorrt-fp16": {"auc": split}},
            layer_times=[
                {"layer": "mlp.0", "original_ms": 2.0, "compressed_ms": 0.5, "nodes": (1, 2)}
            ],
            training=[lesson("train", ranks={"mlp.0": [(0, 6), (20, 4), (60, 3)]}), lesson()],
            front=[
                point(900_000, 0.812, False),
                point(1_300_000, 0.8155, True, chosen=True),
                point(2_000_000, 0.8158, True),
            ],
            backends={
                "onnxruntime-fp32": {
                    "built": True,
                    "ran": True,
                    "precision": "fp32",
                    "size_bytes": 1_267_309,
                    "note": "ran",
                }
            },
        ),
        "plan": plan(("emb_wind", "embedding", "rank 16 is cheapest")),
        "layers": layers(layer(), layer("mlp.3", rank=None, error=None, energy=None)),
        "lock": LOCK,
        "recipe": "name: ctr\nmodel: model.onnx\n",
    }
