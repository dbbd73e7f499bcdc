"""Two bundles side by side, out of what they keep; nothing is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from rankc.proof import Proof, kept_proof, read_part
from rankc.report import text
from rankc.validate.baseline_file import Data, target_of
from rankc.validate.quantities import known_to, observe
from rankc.validate.schema import Metrics
from rankrt.bundle import Contents

Value = float | int | str | None
_WHOLE = 1000  # from here on what is behind the point is noise


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One quantity of both."""

    part: str  # accuracy, sizes, times, gates, ranks or versions
    name: str
    old: Value  # None: it has none
    new: Value
    note: str = ""  # why the two cannot be compared

    @property
    def change(self) -> float | None:
        """New - old; None for what is no number, or may not be compared."""
        if self.note or not isinstance(self.old, int | float):
            return None
        return self.new - self.old if isinstance(self.new, int | float) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """A bundle opened to be compared."""

    proof: Proof
    choices: Mapping[str, str]  # rank and form by site
    versions: Mapping[str, str]


def side_of(contents: Contents) -> Side:
    """What is compared of a bundle whose hashes were checked.

    Raises:
        RecipeError: another version of rankc measured it, in another structure.
        rankrt.BundleError: a file of it is missing.
    """
    choices = read_part(contents, "plan.json")["choices"]
    ranks = {one["site"]: f"{one['rank']} {one.get('form', '')}".strip() for one in choices}
    return Side(kept_proof(contents), ranks, contents.manifest.versions)


def compare(old: Side, new: Side) -> tuple[Line, ...]:
    """Every quantity of either; of ranks and versions those that differ.

    Times of different devices and accuracies on different rows have a note in the place of a
    change.
    """
    return (
        *_quantities(old.proof, new.proof),
        *_gates(old.proof.metrics, new.proof.metrics),
        *_differing("ranks", old.choices, new.choices),
        *_differing("versions", old.versions, new.versions),
    )


def _quantities(old: Proof, new: Proof) -> Iterator[Line]:
    before, after = old.metrics, new.metrics
    rows, device, original = _rows(old, new), _device(before, after), _original(old, new)
    for name, quantity in {**known_to(before), **known_to(after)}.items():
        timed = quantity.kind == "performance" and bool(quantity.needs)
        part = "times" if timed else "accuracy" if quantity.kind == "accuracy" else "sizes"
        note = {"times": device, "accuracy": rows, "sizes": ""}[part]
        if part == "accuracy" and quantity.needs == "rows":
            note = note or original
        sizes = {**before["latency"], **after["latency"]}
        for batch in sorted(map(int, sizes)) if quantity.per_batch else (None,):
            values = [_value(metrics, name, batch) for metrics in (before, after)]
            if values != [None, None]:
                label = name if batch is None else f"{name} b{batch}"
                yield Line(part, label, values[0], values[1], note)


def _value(metrics: Metrics, name: str, batch: int | None) -> float | None:
    pair = observe(metrics, name, batch) if name in known_to(metrics) else None
    return None if pair is None else pair[1]


def _rows(old: Proof, new: Proof) -> str:
    was, now = old.subject["data"], new.subject["data"]
    if was == now:
        return ""
    return f"other validation data: {_data(was)} and {_data(now)}"


def _data(data: Data | None) -> str:
    return "none" if data is None else f"{data['sha256'][:8]}…"


def _device(before: Metrics, after: Metrics) -> str:
    was, now = target_of(before), target_of(after)
    return "" if was == now else f"measured on {was} and on {now}"


def _original(old: Proof, new: Proof) -> str:
    same = old.subject["original"] == new.subject["original"]
    return "" if same else "distances from different originals"


def _gates(before: Metrics, after: Metrics) -> Iterator[Line]:
    verdicts: list[dict[str, str]] = []
    for metrics in (before, after):
        found = {}
        for gate in metrics["gates"]:
            at = "" if gate["batch"] is None else f" b{gate['batch']}"
            found[f"{gate['metric']}{at} {gate['text']}"] = gate["verdict"]
        verdicts.append({name: str(verdict) for name, verdict in found.items()})
    for name in {**verdicts[0], **verdicts[1]}:
        yield Line("gates", name, verdicts[0].get(name), verdicts[1].get(name))


def _differing(part: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Line]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield Line(part, name, old.get(name), new.get(name))


def cells(line: Line) -> tuple[str, str, str, str]:
    """A row of the table: name, both values, and the change or why there is none."""
    change = line.note
    if line.change is not None:
        change = _signed(line.change) if line.change else "the same"
        if line.change and isinstance(line.old, int | float) and line.old:
            change += f" ({100 * line.change / abs(line.old):+.2f} %)".replace("-", text.MINUS)
    return line.name, _shown(line.old), _shown(line.new), change


def _signed(change: float) -> str:
    size = abs(change) if abs(change) >= _WHOLE else float(f"{abs(change):.3g}")
    return f"{'+' if change > 0 else text.MINUS}{_shown(size)}"


def _shown(value: Value) -> str:
    if value is None:
        return text.DASH
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= _WHOLE else f"{value:.6g}"
