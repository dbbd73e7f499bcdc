"""Where a change comes from: from the compression, or from the lower precision it is run in.

Four models on the same rows: the original and the compressed one, in float32 and in float16. Of the
difference of each to the original in float32,
    floor        original in float16: what the precision does to a model that nobody compressed
    compression  compressed in float32
    total        compressed in float16
    lowering     total - compression
with intervals as those of any difference. Lowering beyond the floor's interval is an effect
of the compressed graph: an overflow, say, or a factor that float16 does not hold.

A CPU has no float16 arithmetic: what passes between nodes, and weights, are rounded to it, and sums
within a node are of float32. An engine may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rankc.data import Source, refused_rows
from rankc.recipe import Recipe
from rankc.validate.bootstrap import Interval, Statistic, intervals
from rankc.validate.compare import columns_of
from rankc.validate.judgement import Judgement
from rankc.validate.kinds import Names
from rankc.validate.own import OwnSoFar
from rankc.validate.schema import Split
from rankc.validate.scoring import Collected, batched_inputs, scored_output
from rankrt.session import Session, open_model

RESAMPLES = 1000
# What is told apart beside what gates name: what people judge a model by, and else how far it is.
_HEADLINES = ("auc", "logloss", "accuracy_top1", "perplexity", "mean_iou")
_WITHOUT_LABELS = ("kl_div", "mean_abs_err")
# Who is held against whom: indices into original, compressed, original fp16, compressed fp16.
_PAIRS = {"floor": (0, 2), "compression": (0, 1), "total": (0, 3), "lowering": (1, 3)}

_Judged = Mapping[str, Judgement]  # by part
_Key = tuple[str, str]  # part, metric


def split_changes(models: Sequence[Path], source: Source, recipe: Recipe) -> dict[str, Split]:
    """What each part does to every metric that a gate names, and to those people judge by.

    Args:
        models: ONNX files: original, compressed, and the two of them rounding to float16, which are
            run as they are written: an optimiser would take the rounding out.
        source: Validation rows.
        recipe: Its gates, column names and seed are used.

    Raises:
        ModelError: An output is not finite or has another shape.
        RankrtError: A model does not run.
    """
    sessions = [open_model(path, threads=1, optimize=i < 2) for i, path in enumerate(models)]
    judged, rows = _judge(sessions, source, recipe)
    names = _names(judged, recipe)
    found = _intervals(judged, names, rows, recipe.seed)
    return {name: _split(judged, name, found) for name in names}


def beyond_floor(split: Split) -> bool:
    """Whether lowering does more to the compressed model than it may do to the original."""
    floor = split["floor_interval"] or (split["floor"], split["floor"])
    lowering = split["lowering_interval"] or (split["lowering"], split["lowering"])
    return lowering[0] > max(floor[1], 0.0) or lowering[1] < min(floor[0], 0.0)


def _judge(
    sessions: Sequence[Session], source: Source, recipe: Recipe
) -> tuple[dict[str, Judgement], int]:
    """One pass over the rows with all of them, and how many rows there were."""
    output = scored_output(sessions[0].outputs)
    names, free = Names(output, *columns_of(recipe)), batched_inputs(sessions[0].inputs)
    collected = {part: Collected(names, OwnSoFar(()), 1, free) for part in _PAIRS}
    rows = 0
    for batch in source.batches():
        with refused_rows(source, rows, batch.rows):
            answers = [session.run(batch.feeds)[output] for session in sessions]
        for part, (one, other) in _PAIRS.items():
            collected[part].add(batch, answers[one], answers[other])
        rows += batch.rows
    return {part: each.finish().judgement for part, each in collected.items()}, rows


def _names(judged: _Judged, recipe: Recipe) -> list[str]:
    """Metrics that all parts have; top1_agreement has no statistic to subtract."""
    gated = {gate.metric for gate in recipe.gates} - {"top1_agreement"}
    known = set.intersection(*(set(one.pairs) for one in judged.values()))
    headlines = known & set(_HEADLINES) or known & set(_WITHOUT_LABELS)
    return [name for name in judged["total"].pairs if name in (known & gated) | headlines]


def _intervals(
    judged: _Judged, names: Sequence[str], rows: int, seed: int
) -> dict[_Key, Interval | None]:
    """Closed forms where there are some, else a bootstrap of all of them on the same draws."""
    closed: dict[_Key, Interval | None] = {}
    drawn: dict[_Key, Statistic] = {}
    for part, found in judged.items():
        for name in names:
            if name in found.estimates:
                closed[part, name] = found.estimates[name]().interval
            elif part == "lowering" and name in found.differences and name not in found.values:
                drawn[part, name] = _between(judged, name)
            elif name in found.differences:
                drawn[part, name] = found.differences[name]
    return closed | intervals(drawn, rows, resamples=RESAMPLES, seed=seed)


def _between(judged: _Judged, name: str) -> Statistic:
    """Of a distance: how much further the total is from the original than the compression."""
    total, compression = (judged[part].differences[name] for part in ("total", "compression"))
    return lambda counts: total(counts) - compression(counts)


def _split(judged: _Judged, name: str, found: Mapping[_Key, Interval | None]) -> Split:
    floor, compression, total = (
        after - before
        for before, after in (
            judged[part].pairs[name] for part in ("floor", "compression", "total")
        )
    )
    return Split(
        floor=floor,
        compression=compression,
        lowering=total - compression,
        total=total,
        floor_interval=found.get(("floor", name)),
        compression_interval=found.get(("compression", name)),
        lowering_interval=found.get(("lowering", name)),
        total_interval=found.get(("total", name)),
    )
