"""Measured times of layers, as a file: what each costs dense, and factored at some ranks.

A layer is found by its signature, so equal layers of one model and of others share an entry, and a
table serves every model that has such layers. A table belongs to one device, backend and batch
size; its header says which. Nothing in it but the times differs between two runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, ClassVar

import onnx_ir as ir
from annotated_types import Ge, Gt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from rankc.errors import DataError, MachineError
from rankc.layer_models import isolate, signature
from rankc.passbase import Curve, Pass, Site, Times
from rankc.rank_grid import fill

FORMAT = 2
KIND = "rankc latency table"
PAIR = "pair"  # the form of a curve that names none: two factors
MAX_BYTES = 64 << 20  # a table of a thousand layers has a few megabytes

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_AGAIN = "measure it again: rankc profile"

Milliseconds = Annotated[float, Gt(0)]
Rank = Annotated[int, Ge(1)]


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """What the times depend on, beside the layer."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    target: str  # as `rankc profile --target`
    batch: Annotated[int, Ge(1)]
    device: str
    backend: str
    version: str  # of the backend
    clock: str  # what kind of time
    threads: Annotated[int, Ge(1)]


@dataclasses.dataclass(slots=True)
class Layer:
    """The times of one layer."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    dense_ms: Milliseconds
    ranked_ms: dict[str, dict[str, dict[Rank, Milliseconds]]] = dataclasses.field(
        default_factory=dict
    )  # by pass, form and rank

    def of(self, pass_name: str, form: str) -> dict[int, float]:
        """What was timed of one form, by rank."""
        return self.ranked_ms.get(pass_name, {}).get(form or PAIR, {})


@dataclasses.dataclass(frozen=True, slots=True)
class Ranked:
    """What timing one rank of a layer found."""

    form: str
    rank: int
    ratio: float  # factored / dense


@dataclasses.dataclass(slots=True)
class LatencyTable:
    """Layers by signature."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    header: Header
    layers: dict[str, Layer] = dataclasses.field(default_factory=dict)

    def record(self, key: str, dense_ms: float, pass_name: str, ranked: Ranked) -> None:
        """Add what was timed at one rank. The dense time that came first is kept.

        The factored layer was timed in turn with the dense one, so its ratio is what is known
        well; its time is that ratio of the dense time that is kept.
        """
        layer = self.layers.setdefault(key, Layer(_rounded(dense_ms)))
        forms = layer.ranked_ms.setdefault(pass_name, {})
        forms.setdefault(ranked.form or PAIR, {})[ranked.rank] = _rounded(
            layer.dense_ms * ranked.ratio
        )

    def has(self, key: str, pass_name: str, form: str, rank: int) -> bool:
        """Whether that was timed."""
        return key in self.layers and rank in self.layers[key].of(pass_name, form)

    def to_json(self) -> str:
        """Sorted, and the same text for the same times."""
        fields = {"format": FORMAT, "kind": KIND, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=1, sort_keys=True) + "\n"

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            MachineError: it cannot be written; what was there is unchanged.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                    file.write(self.to_json())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(
                f"{path}: cannot be written: {error.strerror or error}; what was there is "
                "unchanged. Free some space, or choose another --out"
            ) from error


def load(path: Path, target: str | None = None) -> LatencyTable:
    """Read a table that nobody vouches for.

    Args:
        path: what `rankc profile` wrote.
        target: what it must have been measured on; None: anything.

    Raises:
        DataError: no such file, no table, damaged, of another format or of another target.
    """
    raw = _read(path)
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no latency table, or was cut short; {_AGAIN}") from error
    if not isinstance(found, dict) or found.pop("kind", None) != KIND:
        raise DataError(f"{path}: is no latency table; give a file that `rankc profile` wrote")
    form = found.pop("format", None)
    if json.dumps(form) != str(FORMAT):  # true is 1 to Python
        raise DataError(
            f"{path}: is a latency table of format {form!r}; this rankc reads {FORMAT}: {_AGAIN}"
        )
    table = _checked(path, found)
    if target is not None and table.header.target != target:
        raise DataError(
            f"{path}: was measured on target {table.header.target!r}, not {target!r}; {_AGAIN} "
            f"--target {target}"
        )
    return table


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "there is no such file"
            raise DataError(f"{path}: {what}; `rankc profile` writes latency tables")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: is larger than any latency table ({MAX_BYTES:,} bytes)")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _checked(path: Path, found: dict[str, Any]) -> LatencyTable:
    try:
        return TypeAdapter(LatencyTable).validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: is a damaged latency table: {where}: {first['msg']}; {_AGAIN}"
        ) from error


def times_for(
    table: LatencyTable, model: ir.Model, pass_: Pass, site: Site, curve: Curve
) -> Times | None:
    """What the site costs on the table's device, dense and at every entry of the curve.

    Ranks that were not timed are read off those that were, see `rank_grid`.

    Args:
        table: its batch size is meant.
        model: after clean-up; for many sites better `concrete(model, table.header.batch)`.
        pass_: the site's owner.
        site: a layer or a table.
        curve: what `pass_.cost` said.

    Returns:
        None where the table lacks the layer, or the site has no layer; infinity at the ranks of a
        form that was not timed, so that it is not chosen.
    """
    alone = isolate(model, pass_, site, table.header.batch)
    layer = None if isinstance(alone, str) else table.layers.get(signature(alone))
    if layer is None:
        return None
    timed = {form: layer.of(pass_.name, form) for form in set(curve.forms or ("",))}
    ranked = fill(curve, {form: ranks for form, ranks in timed.items() if ranks})
    return None if ranked is None else Times(layer.dense_ms, ranked, measured=True)


def _rounded(milliseconds: float) -> float:
    """Six digits: far more than is known."""
    return float(f"{milliseconds:.6g}")
