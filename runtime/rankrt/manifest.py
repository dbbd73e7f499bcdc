"""`manifest.json`: what a bundle holds. Strict to read, deterministic to write.

The text ends with a digest of its own content, and reading it writes it again and compares: a
changed digit, a repeated key or a re-indented file is refused, not only a changed model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rankrt.errors import BundleError
from rankrt.files import MANIFEST, bad_name
from rankrt.session import TensorSpec

FORMAT = 1  # bump when an old runtime would misread a new bundle
MAX_BYTES = 8 << 20  # of manifest.json; ours have some kilobytes
BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime")  # best first
PRECISIONS = ("fp16", "fp32")  # fastest first
KINDS = ("accuracy", "performance")  # of gates
_DTYPES = {"bool", "object", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class FileInfo:
    """What a file of the bundle must be."""

    sha256: str  # 64 hex digits
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Engine:
    """The model as one backend built it, or the reason why there is none."""

    backend: str  # one of BACKENDS
    precision: str  # one of PRECISIONS
    file: str | None  # inside the bundle; None: not built
    compute_capability: tuple[str, ...]  # built for, e.g. ("8.6", "12.0+"); empty: its default
    version: str  # of the backend that built it
    built: bool
    ran: bool  # whether it ran where it was built; if not, it was never measured
    reason: str | None = None  # why it was not built, or not run
    tolerance: float | None = None  # max |Δ| to the golden outputs; None: the golden's own

    @property
    def name(self) -> str:
        """Backend and precision, e.g. `tensorrt-rtx-fp16`."""
        return f"{self.backend}-{self.precision}"


@dataclasses.dataclass(frozen=True, slots=True)
class Golden:
    """Inputs and the outputs that the compiler saw for them."""

    file: str  # .npz with arrays `in:<name>` and `out:<name>`
    tolerance: float  # max |Δ| that other machines may show


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """A promise of the recipe, as a bound on a value of this bundle's model."""

    metric: str
    kind: str  # one of KINDS
    text: str  # as the recipe means it: "drop ≤ 0.001"
    at_least: bool  # whether the bound is the least, or the most
    bound: float | None  # None: it takes more than the bundle to decide
    batch: int | None = None
    percentile: int | None = None  # of a latency
    output: str | None = None  # that a distance is of


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds, and what its maker promises about it."""

    name: str
    files: Mapping[str, FileInfo]  # every file but the manifest, by POSIX path in the bundle
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: str = "model.onnx"
    # Integer inputs only: the largest valid id, one number or one per column (the last axis). A
    # fused table holds other fields' rows behind its own, so a wrong id would not fail by itself.
    id_ranges: Mapping[str, int | tuple[int, ...]] = dataclasses.field(default_factory=dict)
    engines: tuple[Engine, ...] = ()
    golden: Golden | None = None
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by site
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of metrics.json
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of what made it
    target: str = "onnxruntime"
    gates: tuple[Gate, ...] = ()
    format: int = FORMAT

    def to_json(self) -> str:
        """The text of manifest.json: the same fields give the same bytes."""
        fields = dataclasses.asdict(self)
        try:
            digest = hashlib.sha256(_text(fields).encode()).hexdigest()
        except ValueError as error:
            raise BundleError(f"a manifest cannot hold NaN or infinity: {error}") from error
        return _text({**fields, "sha256": digest}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            BundleError: anything at all is not as this version writes it.
        """
        if len(text) > MAX_BYTES:
            raise BundleError(f"{MANIFEST} has {len(text)} characters, more than {MAX_BYTES}")
        try:
            manifest = _manifest(json.loads(text))
            _check(manifest)
            same = manifest.to_json() == text
        except RecursionError as error:
            raise BundleError(f"{MANIFEST} is nested too deeply; refused") from error
        except ValueError as error:  # not JSON, or a number too long to read
            raise BundleError(
                f"{MANIFEST} is not valid JSON ({error}): copy the bundle again, or recompile"
            ) from error
        if not same:
            raise BundleError(
                f"{MANIFEST} is not as rankc wrote it: it was damaged, edited or reformatted; "
                "copy the bundle again, or recompile the recipe"
            )
        return manifest


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=1, sort_keys=True, allow_nan=False)


def _manifest(raw: object) -> Manifest:
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST} holds {_kind(raw)}, expected an object")
    if raw.get("format") != FORMAT:
        raise BundleError(
            f"the bundle's format is {raw.get('format')!r}, this runtime reads {FORMAT}: "
            "upgrade rankrt, or recompile the recipe"
        )
    item = _Reader(raw, "", Manifest, extra=("sha256",))
    item.get("sha256", str)  # compared by from_json
    return Manifest(
        format=FORMAT,
        name=item.get("name", str),
        model=item.get("model", str),
        target=item.get("target", str),
        files=item.mapping("files", _file),
        gates=item.tuple("gates", _gate),
        inputs=item.tuple("inputs", _spec),
        outputs=item.tuple("outputs", _spec),
        id_ranges=item.mapping("id_ranges", _id_range),
        engines=item.tuple("engines", _engine),
        golden=item.optional("golden", _golden),
        ranks=item.mapping("ranks", lambda value, where: _typed(value, where, int)),
        metrics=item.mapping("metrics", lambda value, _: value),
        versions=item.mapping("versions", lambda value, where: _typed(value, where, str)),
    )


def _file(raw: object, where: str) -> FileInfo:
    item = _Reader(raw, where, FileInfo)
    return FileInfo(item.get("sha256", str), item.get("size_bytes", int))


def _spec(raw: object, where: str) -> TensorSpec:
    item = _Reader(raw, where, TensorSpec)
    return TensorSpec(item.get("name", str), item.get("dtype", str), item.tuple("shape", _size))


def _size(raw: object, where: str) -> int | str | None:
    return raw if raw is None or isinstance(raw, str) else _typed(raw, where, int)


def _id_range(raw: object, where: str) -> int | tuple[int, ...]:
    if not isinstance(raw, list):
        return _typed(raw, where, int)
    return tuple(_typed(value, where, int) for value in raw)


def _engine(raw: object, where: str) -> Engine:
    item = _Reader(raw, where, Engine)
    return Engine(
        backend=item.get("backend", str),
        precision=item.get("precision", str),
        file=item.optional("file", lambda value, at: _typed(value, at, str)),
        compute_capability=item.tuple("compute_capability", lambda v, at: _typed(v, at, str)),
        version=item.get("version", str),
        built=item.get("built", bool),
        ran=item.get("ran", bool),
        reason=item.optional("reason", lambda value, at: _typed(value, at, str)),
        tolerance=item.optional("tolerance", _number),
    )


def _gate(raw: object, where: str) -> Gate:
    item = _Reader(raw, where, Gate)
    return Gate(
        metric=item.get("metric", str),
        kind=item.get("kind", str),
        text=item.get("text", str),
        at_least=item.get("at_least", bool),
        bound=item.optional("bound", _number),
        batch=item.optional("batch", lambda value, at: _typed(value, at, int)),
        percentile=item.optional("percentile", lambda value, at: _typed(value, at, int)),
        output=item.optional("output", lambda value, at: _typed(value, at, str)),
    )


def _golden(raw: object, where: str) -> Golden:
    item = _Reader(raw, where, Golden)
    return Golden(item.get("file", str), _number(item.raw["tolerance"], f"{where}.tolerance"))


def _number(raw: object, where: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise BundleError(f"{MANIFEST}: {where} is {_kind(raw)}, expected a number")
    return raw  # an int stays one: the text must come out the same


def _typed(raw: object, where: str, kind: type[_T]) -> _T:
    # a bool is an int to isinstance, not to us
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        raise BundleError(f"{MANIFEST}: {where} is {_kind(raw)}, expected {_NAMES[kind]}")
    return raw


class _Reader:
    """A JSON object that must have exactly the fields of a dataclass."""

    def __init__(
        self, raw: object, where: str, kind: type[Any], extra: tuple[str, ...] = ()
    ) -> None:
        if not isinstance(raw, dict):
            raise BundleError(f"{MANIFEST}: {where} is {_kind(raw)}, expected an object")
        want = {field.name for field in dataclasses.fields(kind)} | set(extra)
        at = f"{where}: " if where else ""
        if unknown := sorted(set(raw) - want):
            raise BundleError(
                f"{MANIFEST}: {at}unknown fields {', '.join(unknown)} (known: "
                f"{', '.join(sorted(want))}); upgrade rankrt, or recompile the recipe"
            )
        if missing := sorted(want - set(raw)):
            raise BundleError(f"{MANIFEST}: {at}missing fields {', '.join(missing)}; recompile")
        self.raw: dict[str, Any] = raw
        self._where = f"{where}." if where else ""

    def get(self, name: str, kind: type[_T]) -> _T:
        return _typed(self.raw[name], self._where + name, kind)

    def optional(self, name: str, read: Callable[[object, str], _T]) -> _T | None:
        return None if self.raw[name] is None else read(self.raw[name], self._where + name)

    def tuple(self, name: str, read: Callable[[object, str], _T]) -> tuple[_T, ...]:
        where = self._where + name
        items = _typed(self.raw[name], where, list)
        return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(items))

    def mapping(self, name: str, read: Callable[[object, str], _T]) -> dict[str, _T]:
        where = self._where + name
        items = _typed(self.raw[name], where, dict)
        return {key: read(value, f"{where}[{key!r}]") for key, value in items.items()}


def _check(manifest: Manifest) -> None:
    """What must hold between the fields."""
    _check_files(manifest)
    for spec in (*manifest.inputs, *manifest.outputs):
        _check_spec(spec)
    for name, ids in manifest.id_ranges.items():
        _check_ids(name, ids, manifest.inputs)
    for i, engine in enumerate(manifest.engines):
        _choice(f"engines[{i}].backend", engine.backend, BACKENDS)
        _choice(f"engines[{i}].precision", engine.precision, PRECISIONS)
        _tolerance(f"engines[{i}].tolerance", engine.tolerance)
        if engine.built != (engine.file is not None):
            raise BundleError(f"{MANIFEST}: engines[{i}] must have a file exactly if it was built")
    for i, gate in enumerate(manifest.gates):
        _choice(f"gates[{i}].kind", gate.kind, KINDS)
        if gate.batch is not None and gate.batch < 1:
            raise BundleError(f"{MANIFEST}: gates[{i}].batch is {gate.batch}, expected 1 or more")
    if manifest.golden is not None:
        _tolerance("golden.tolerance", manifest.golden.tolerance)


def _check_files(manifest: Manifest) -> None:
    for name, info in manifest.files.items():
        reason = "it names the manifest itself" if name == MANIFEST else bad_name(name)
        if reason:
            raise BundleError(f"{MANIFEST}: the file name {name!r} is refused: {reason}")
        if info.size_bytes < 0 or len(info.sha256) != 64:
            raise BundleError(f"{MANIFEST}: files[{name!r}] has an impossible size or sha256")
    used = [manifest.model, *(engine.file for engine in manifest.engines)]
    used.append(manifest.golden.file if manifest.golden is not None else None)
    for file in used:
        if file is not None and file not in manifest.files:
            raise BundleError(f"{MANIFEST}: {file!r} is used but is not one of its files")


def _check_spec(spec: TensorSpec) -> None:
    _choice(f"the dtype of {spec.name!r}", spec.dtype, sorted(_DTYPES))
    if any(isinstance(size, int) and size < 0 for size in spec.shape):
        raise BundleError(f"{MANIFEST}: {spec} has a negative size")


def _check_ids(name: str, ids: int | tuple[int, ...], inputs: tuple[TensorSpec, ...]) -> None:
    spec = next((spec for spec in inputs if spec.name == name), None)
    if spec is None or "int" not in spec.dtype:
        raise BundleError(f"{MANIFEST}: id_ranges names {name!r}, which is no integer input")
    columns = spec.shape[-1] if spec.shape else None
    if isinstance(ids, tuple) and len(ids) != columns:
        raise BundleError(f"{MANIFEST}: id_ranges has {len(ids)} columns for input {spec}")
    if any(not 0 <= most < 1 << 63 for most in (ids if isinstance(ids, tuple) else (ids,))):
        raise BundleError(f"{MANIFEST}: id_ranges of {name!r} must lie in 0..2**63-1")


def _choice(where: str, value: str, choices: tuple[str, ...] | list[str]) -> None:
    if value not in choices:
        raise BundleError(f"{MANIFEST}: {where} is {value!r}, not one of {', '.join(choices)}")


def _tolerance(where: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise BundleError(f"{MANIFEST}: {where} is {value}, expected a number from 0 up")


_NAMES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _kind(raw: object) -> str:
    """What a JSON value is, as a reader of JSON calls it."""
    if raw is None:
        return "null"
    return _NAMES.get(type(raw), "a number")
