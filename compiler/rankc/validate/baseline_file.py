"""What a bundle once measured, in a file beside the recipe that goes into version control.

Accuracies belong to the rows that they were measured on, times to the target that ran them, and
sizes to neither, so each part says where it is from. Figures lie in it as in metrics.json.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict  # pydantic needs these below Python 3.12

from rankc.errors import MachineError, RecipeError
from rankc.recipe import Recipe
from rankc.validate.quantities import QUANTITIES
from rankc.validate.schema import LatencyHow, LatencyRow, Measured, Metrics, Ratios, Startup

FORMAT: Final = 1
MAX_BYTES = 4_000_000
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@with_config(_STRICT)
class Data(TypedDict):
    """The validation rows that accuracies are of."""

    sha256: str  # of the files
    rows: int | None  # the most that the recipe reads of them
    label: str | None
    group: str | None


@with_config(_STRICT)
class Accuracy(TypedDict):
    """Metrics of the answers."""

    data: Data
    original: str  # sha256 of the model as it came
    compressed: str  # sha256 of the model that was measured
    metrics: dict[str, Measured]


@with_config(_STRICT)
class Sizes(TypedDict):
    """What does not hang on rows or machines."""

    compressed: str
    metrics: dict[str, Measured]
    ratios: Ratios


@with_config(_STRICT)
class Times(TypedDict):
    """What one target measured, memory included."""

    original: str
    compressed: str
    latency: dict[str, LatencyRow]
    latency_how: LatencyHow
    memory_batch: int | None
    metrics: dict[str, Measured]
    startup: NotRequired[dict[Literal["original", "compressed"], Startup]]


@with_config(_STRICT)
class BaselineFile(TypedDict):
    """The whole file."""

    format: Literal[1]
    recipe: str
    accuracy: dict[str, Accuracy]  # by the sha256 of the rows
    sizes: Sizes
    times: dict[str, Times]  # by target, see `target_of`


class Subject(TypedDict):
    """Which models were measured, on which rows."""

    original: str  # sha256 of the file
    compressed: str
    data: Data | None


_ADAPTER = TypeAdapter(BaselineFile)


def baseline_path(recipe: Recipe) -> Path:
    """`<recipe>.baseline.json`, beside the recipe."""
    return recipe.file.with_name(f"{recipe.file.stem}.baseline.json")


def target_name(backend: str, device: str) -> str:
    """What ran the timed models, and on what.

    >>> target_name("onnxruntime", "AMD EPYC 7B13")
    'onnxruntime-fp32 on AMD EPYC 7B13'
    """
    return f"{backend}-fp32 on {device}"


def target_of(metrics: Metrics) -> str:
    """The same of what was measured; versions are left out."""
    how = metrics["latency_how"]
    return target_name(how["backend"].partition(" ")[0], how["device"])


def read_baseline(path: Path) -> BaselineFile | None:
    """The file's content, or None where there is no file.

    Raises:
        RecipeError: it is no baseline, was damaged, or is of another format.
    """
    mend = "restore it from version control, or remove it and run `rankc baseline update BUNDLE`"
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the baseline: {error.strerror}") from error
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes, so no baseline\n  {mend}")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not valid JSON: {error}\n  {mend}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found != FORMAT:
        raise RecipeError(
            f"{path}: a baseline of format {found}, this version reads {FORMAT}\n"
            "  upgrade rankc, or remove the file and run `rankc baseline update BUNDLE`"
        )
    try:
        return _ADAPTER.validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RecipeError(f"{path}: not a baseline: {where}: {first['msg']}\n  {mend}") from error


def write_baseline(path: Path, content: BaselineFile) -> None:
    """Write the file whole or not at all; keys are sorted, so that a diff shows what changed.

    Raises:
        MachineError: it could not be written; what was there is unchanged.
    """
    checked = _ADAPTER.validate_python(content)
    text = json.dumps(checked, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(
            f"{path}: cannot write the baseline: {error.strerror}; what was there is unchanged"
        ) from error


def renewed(before: BaselineFile | None, metrics: Metrics, subject: Subject) -> BaselineFile:
    """The baseline with everything that was measured now in the place of what was there.

    Accuracies on other rows and times of other targets stay.

    Args:
        before: what the file holds; None: there is none.
        metrics: the content of metrics.json.
        subject: what was measured.
    """
    accuracy = dict(before["accuracy"]) if before else {}
    times = dict(before["times"]) if before else {}
    if subject["data"] is not None:
        accuracy[subject["data"]["sha256"]] = Accuracy(
            data=subject["data"],
            original=subject["original"],
            compressed=subject["compressed"],
            metrics=_part(metrics, "accuracy"),
        )
    if metrics["latency"]:
        times[target_of(metrics)] = _times(metrics, subject)
    sizes = Sizes(
        compressed=subject["compressed"],
        metrics=_part(metrics, "sizes"),
        ratios=metrics["ratios"],
    )
    return BaselineFile(
        format=FORMAT, recipe=metrics["recipe"], accuracy=accuracy, sizes=sizes, times=times
    )


def _times(metrics: Metrics, subject: Subject) -> Times:
    found = Times(
        original=subject["original"],
        compressed=subject["compressed"],
        latency=metrics["latency"],
        latency_how=metrics["latency_how"],
        memory_batch=metrics["memory_batch"],
        metrics=_part(metrics, "times"),
    )
    if "startup" in metrics:
        found["startup"] = metrics["startup"]
    return found


def lines_of(content: BaselineFile) -> Iterator[str]:
    """What the file has, for people."""
    for one in content["accuracy"].values():
        yield f"accuracy on validation data {one['data']['sha256'][:12]}…"
        for name, found in one["metrics"].items():
            yield f"  {name:<18} {found['compressed']:.6g}"
    yield "sizes"
    for name, found in content["sizes"]["metrics"].items():
        yield f"  {name:<18} {found['compressed']:,.0f}"
    for target, times in content["times"].items():
        yield f"times of {target}"
        for size, row in times["latency"].items():
            yield (
                f"  batch {size:<12} p50 {row['compressed']['p50_ms']:.4g} ms, "
                f"{row['ratio']:.3f} of the original's"
            )


Part = Literal["accuracy", "sizes", "times"]


def part_of(name: str) -> Part:
    """The part of the file that has a metric; what gates do not know is somebody's own metric."""
    quantity = QUANTITIES.get(name)
    if quantity is None or quantity.kind == "accuracy":
        return "accuracy"
    return "times" if quantity.needs else "sizes"


def _part(metrics: Metrics, part: Part) -> dict[str, Measured]:
    return {name: found for name, found in metrics["metrics"].items() if part_of(name) == part}
