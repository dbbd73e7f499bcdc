"""A small metrics.json that several tests share."""

from __future__ import annotations

from rankc.validate.schema import LatencyHow, LatencyRow, Measured, Metrics, Percentiles


def measured(
    original: float, compressed: float, interval: tuple[float, float] | None = None
) -> Measured:
    return Measured(
        original=original,
        compressed=compressed,
        difference=compressed - original,
        interval=interval,
    )


def some_metrics() -> Metrics:
    row = LatencyRow(
        original=Percentiles(p50_ms=0.1, p90_ms=0.2, p95_ms=0.2, p99_ms=0.2),
        compressed=Percentiles(p50_ms=0.04, p90_ms=0.1, p95_ms=0.1, p99_ms=0.1),
        ratio=0.4,
        interval=(0.39, 0.41),
        pairs=60,
        calls_per_sample=(30, 70),
    )
    return Metrics(
        format=1,
        recipe="some",
        passed=False,
        gates=[],
        rows=100,
        output="p",
        metrics={
            "auc": measured(0.8, 0.775, (-0.03, -0.02)),
            "logloss": measured(0.4, 0.5),
            "accuracy_top1": measured(0.86, 0.845, (-0.021, -0.0088)),
            "mean_abs_err": measured(0.0, 0.125),
            "size_bytes": measured(1200, 100),
        },
        unavailable={"macs": "node 'conv' (Conv): shape inference gives no shapes"},
        ratios={"size_bytes": 12.0},
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
        memory_batch=None,
        startup={
            "original": {"load_ms": 10.0, "cold_start_ms": 300.0},
            "compressed": {"load_ms": 5.0, "cold_start_ms": 330.0},
        },
        backends={},
        environment={},
    )
