"""A bundle: checked, opened with the best backend that works here, and run."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from rankrt import golden
from rankrt.errors import BackendError, BundleError, FeedError
from rankrt.files import MANIFEST, inside, verify
from rankrt.manifest import BACKENDS, MAX_BYTES, PRECISIONS, Engine, Manifest
from rankrt.session import Array, Session, TensorSpec, check_array, check_names, open_model

Refusal = tuple[str, str]  # an engine's name, and why it is not used
GoldenRows = tuple[dict[str, Array], dict[str, Array]]  # inputs and outputs by name
_FALLBACK = "onnxruntime"  # opens the ONNX model itself


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle's files, every one of them as the manifest says."""

    folder: Path
    manifest: Manifest
    temporary: Path | None  # to be removed after use, where the bundle was a tar

    def close(self) -> None:
        """Remove the temporary folder, if any."""
        _discard(self.temporary)


@final
class Bundle:
    """A bundle ready to run; `close` it, or use it as a context manager, to free a tar's copy."""

    def __init__(
        self,
        contents: Contents,
        session: Session,
        engine: Engine | None,
        refused: tuple[Refusal, ...],
    ) -> None:
        """Take what `load` has opened; `engine` is None for the ONNX model itself."""
        self.manifest = contents.manifest
        self.session = session
        self.engine = engine
        self.refused = refused  # engines that were not used, each with the reason
        self._contents = contents
        self._limits = _unsigned_limits(contents.manifest)
        self._release = weakref.finalize(self, _discard, contents.temporary)

    @property
    def backend(self) -> str:
        """The backend in use, e.g. `onnxruntime`."""
        return self.session.backend

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name, from every input by name.

        Raises:
            FeedError: a name, dtype, shape or id that the manifest does not allow.
            BackendError: the backend failed.
        """
        inputs = self.manifest.inputs
        check_names(inputs, feeds)
        sizes: dict[str, int] = {}
        for spec in inputs:
            check_array(spec, feeds[spec.name], sizes)
        for name, limits in self._limits.items():
            _check_ids(name, feeds[name], limits)
        return self.session.run(feeds)

    def golden_rows(self) -> GoldenRows | None:
        """The golden inputs and outputs by name, or None if the bundle has none."""
        return _golden_rows(self._contents)

    def references(self) -> dict[str, Array]:
        """What the original model put out for the golden inputs; empty if that was not kept."""
        kept = self.manifest.golden
        return {} if kept is None else golden.read_all(inside(self._contents.folder, kept.file))[2]

    def check_golden(self) -> golden.Comparison | None:
        """Run the golden inputs and compare, or None if the bundle has none.

        Raises:
            BundleError: the golden file does not fit the model.
        """
        rows = self.golden_rows()
        if rows is None:
            return None
        try:
            got = self.run(rows[0])
        except FeedError as error:
            raise BundleError(f"the golden inputs do not fit the model: {error}") from error
        return golden.compare(rows[1], got, _bound(self.manifest, self.engine))

    def close(self) -> None:
        """Free what loading took on disk; `run` still works, the golden rows may be gone."""
        self._release()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(path: str | Path, *, backend: str | None = None, threads: int = 1) -> Bundle:
    """Check every file of the bundle and open the best backend that works here.

    Engines come first (TensorRT, then TensorRT-RTX; FP16 before FP32), each of them only after it
    has reproduced the golden rows on this device; ONNX Runtime comes last. What was not used, and
    why, is in `Bundle.refused`.

    Args:
        path: the bundle's folder, or the .tar of one.
        backend: use this one or fail.
        threads: of ONNX Runtime, within one operator; 0 leaves the number to it.

    Raises:
        BundleError: a file is missing, damaged or changed, or the bundle is from another version.
        BackendError: nothing here can run it; lists the reasons.
    """
    if backend is not None and backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    contents = read(path)
    try:
        return _open_best(contents, backend, threads)
    except BaseException:
        contents.close()
        raise


def read(path: str | Path) -> Contents:
    """The bundle's files and manifest, every hash checked; nothing is opened or run.

    Raises:
        BundleError: as for `load`.
        BackendError: a tar cannot be unpacked, e.g. on a full disk.
    """
    path = Path(path)
    folder, temporary = _folder(path)
    try:
        manifest = _read_manifest(folder)
        for name, info in manifest.files.items():
            verify(folder, name, info.size_bytes, info.sha256)
    except BaseException:
        _discard(temporary)
        raise
    return Contents(folder, manifest, temporary)


def engines_by_preference(manifest: Manifest) -> list[Engine]:
    """The engines that `load` tries before ONNX Runtime, best first."""
    engines = [engine for engine in manifest.engines if engine.backend != _FALLBACK]
    return sorted(engines, key=lambda e: (BACKENDS.index(e.backend), PRECISIONS.index(e.precision)))


def why_not(engine: Engine) -> str | None:
    """Why the engine cannot be tried here, as far as can be told without opening it."""
    from rankrt.backends import tensorrt

    if not engine.built:
        why = engine.reason or "no reason was kept"
        return why if why.startswith("not built") else f"not built: {why}"
    if reason := tensorrt.available(engine.backend):
        return reason
    return tensorrt.wrong_device(engine)


def _folder(path: Path) -> tuple[Path, Path | None]:
    if path.is_dir():
        return path, None
    if path.is_file() and path.name not in (MANIFEST, "model.onnx"):
        from rankrt.archive import unpack  # most bundles are folders: spare them tarfile's import

        return unpack(path)
    if path.is_file():
        raise BundleError(f"{path} is one file of a bundle; load its folder, {path.parent}")
    raise BundleError(f"{path} does not exist: give a bundle's folder, or the .tar of one")


def _discard(temporary: Path | None) -> None:
    if temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_manifest(folder: Path) -> Manifest:
    if not (folder / MANIFEST).exists():
        raise BundleError(f"{folder} holds no {MANIFEST}: it is not a bundle, or a part is missing")
    path = inside(folder, MANIFEST)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("ascii")
        return Manifest.from_json(text)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is damaged ({error}): copy the bundle again") from error
    except BundleError as error:
        raise BundleError(f"{folder}: {error}") from error


def _open_best(contents: Contents, backend: str | None, threads: int) -> Bundle:
    refused: list[Refusal] = []
    for engine in (*engines_by_preference(contents.manifest), None):
        if backend not in (None, engine.backend if engine else _FALLBACK):
            continue
        try:
            if engine is None:
                session = _open_onnx(contents, threads)
            else:
                session = _open_engine(contents, engine)
            return Bundle(contents, session, engine, tuple(refused))
        except BackendError as error:
            refused.append((engine.name if engine else _FALLBACK, str(error)))
    reasons = [f"{name}: {reason}" for name, reason in refused]
    if not refused:
        reasons = [f"{backend}: the bundle holds no engine for it; recompile with that target"]
    raise BackendError("\n  ".join([f"nothing can run {contents.manifest.name!r} here", *reasons]))


def _open_onnx(contents: Contents, threads: int) -> Session:
    session = open_model(contents.folder / contents.manifest.model, threads=threads)
    _same_interface(contents.manifest, session)
    return session


def _open_engine(contents: Contents, engine: Engine) -> Session:
    from rankrt.backends import tensorrt

    if (reason := why_not(engine)) or engine.file is None:
        raise BackendError(reason or "not built")
    session = tensorrt.open_engine(contents.folder / engine.file, engine)
    _same_interface(contents.manifest, session)
    _prove(contents, engine, session)
    return session


def _prove(contents: Contents, engine: Engine, session: Session) -> None:
    """Refuse an engine that does not reproduce the golden rows on this very device."""
    rows = _golden_rows(contents)
    if rows is None:
        if not engine.ran:
            raise BackendError("it was built but never run, and no golden rows are there to try it")
        return
    try:
        result = golden.compare(rows[1], session.run(rows[0]), _bound(contents.manifest, engine))
    except FeedError as error:
        raise BackendError(f"it does not take the golden inputs: {error}") from error
    if not result.ok:
        raise BackendError(
            f"it misses the golden outputs: max |Δ| {result.max_abs_err:.1e}, bound "
            f"{result.bound:.1e}"
        )


def _golden_rows(contents: Contents) -> GoldenRows | None:
    if contents.manifest.golden is None:
        return None
    return golden.read(inside(contents.folder, contents.manifest.golden.file))


def _bound(manifest: Manifest, engine: Engine | None) -> float:
    if engine is not None and engine.tolerance is not None:
        return engine.tolerance
    return manifest.golden.tolerance if manifest.golden is not None else 0.0


def _same_interface(manifest: Manifest, session: Session) -> None:
    """Refuse a model whose inputs or outputs are not those that the manifest promises."""
    for kind, want, got in (
        ("inputs", manifest.inputs, session.inputs),
        ("outputs", manifest.outputs, session.outputs),
    ):
        if _interface(want) != _interface(got):
            raise BackendError(
                f"its {kind} are {', '.join(map(str, got))}; the manifest says "
                f"{', '.join(map(str, want))}"
            )


def _interface(specs: tuple[TensorSpec, ...]) -> set[tuple[str, str, int]]:
    return {(spec.name, spec.dtype, len(spec.shape)) for spec in specs}


def _unsigned_limits(manifest: Manifest) -> dict[str, NDArray[np.unsignedinteger]]:
    """The largest valid ids, in the unsigned type as wide as the input's."""
    limits: dict[str, NDArray[np.unsignedinteger]] = {}
    for spec in manifest.inputs:
        if spec.name in manifest.id_ranges:
            dtype = np.dtype(spec.dtype)
            most = np.asarray(manifest.id_ranges[spec.name], dtype=np.uint64)
            limits[spec.name] = np.minimum(most, np.iinfo(dtype).max).astype(f"u{dtype.itemsize}")
    return limits


def _check_ids(name: str, ids: Array, limits: NDArray[np.unsignedinteger]) -> None:
    """Refuse ids outside 0..limit. As unsigned numbers negative ids are huge: one comparison."""
    bad = ids.view(limits.dtype) > limits
    if not bad.any():
        return
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    most = int(np.broadcast_to(limits, ids.shape)[where])
    raise FeedError(
        f"input {name} holds the id {int(ids[where])} at {list(where)}, valid are 0..{most}; "
        f"{int(bad.sum())} of {ids.size} ids are wrong: map unknown values to the unknown id"
    )
