"""What is installed here, what works, and what to install for the rest. Needs numpy only."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import platform
import re
import subprocess
import sys
from typing import Any

from rankrt.backends import cuda, onnxruntime, tensorrt

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[.*\])?>=([0-9.]+)")
_NEEDED = ("compiler",)  # extras that a compile cannot do without, beside a kind of onnxruntime
_SHOWN = ("compiler", "parquet", "train")
_SECONDS = 120  # for TensorRT to come up in a process of its own: it may crash or hang


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """A distribution that rankc can use."""

    name: str
    extra: str  # of rankc, that asks for it; empty: always needed
    wanted: str  # lowest version
    version: str | None  # installed; None: it is not

    @property
    def ok(self) -> bool:
        return self.version is not None and _numbers(self.version) >= _numbers(self.wanted)


@dataclasses.dataclass(frozen=True, slots=True)
class Backend:
    """Something that models can be lowered to."""

    name: str
    version: str | None
    builds: str | None  # None: engines can be built here; else why not
    runs: str | None  # None: models can be run here; else why not
    install: str  # the command that gets it


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the doctor looked at."""

    python: str
    system: str
    rankc: str | None
    gpu: cuda.Device | str  # or why there is none
    packages: tuple[Package, ...]
    backends: tuple[Backend, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a compile for ONNX Runtime can work."""
        needed = all(p.ok for p in self.packages if p.extra in ("", *_NEEDED))
        return needed and self.backends[0].runs is None

    def to_dict(self) -> dict[str, Any]:
        packages = [{**dataclasses.asdict(package), "ok": package.ok} for package in self.packages]
        gpu = self.gpu if isinstance(self.gpu, str) else None
        device = None if isinstance(self.gpu, str) else dataclasses.asdict(self.gpu)
        return {
            **dataclasses.asdict(self),
            "gpu": {"present": gpu is None, "device": device, "reason": gpu},
            "packages": packages,
            "ok": self.ok,
        }

    def to_text(self) -> str:
        lines = [f"rankc {self.rankc or 'not installed'} · Python {self.python} · {self.system}"]
        gpu = self.gpu
        shown = gpu if isinstance(gpu, str) else f"{gpu.name}, compute {gpu.compute_capability}"
        lines += [f"GPU        {shown}", "", "packages"]
        lines += [f"  {_package_line(package)}" for package in self.packages]
        lines += ["", "backends"]
        for backend in self.backends:
            lines += [f"  {line}" for line in _backend_lines(backend)]
        lines += ["", *(f"warning: {text}" for text in self.warnings)]
        fix = "rankc cannot compile here: pip install 'rankc[compiler,cpu]'"
        lines.append("rankc can compile here" if self.ok else fix)
        return "\n".join(line.rstrip() for line in lines)


def examine() -> Findings:
    """Look at this machine. Takes a second or two: backends are tried, not only looked for."""
    return Findings(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        rankc=_version("rankc"),
        gpu=cuda.probe(),
        packages=_packages(),
        backends=(_onnxruntime(), _tensorrt("tensorrt-rtx"), _tensorrt("tensorrt")),
        warnings=tuple(_warnings()),
    )


def _packages() -> tuple[Package, ...]:
    """What rankc's own metadata asks for."""
    try:
        asked = importlib.metadata.requires("rankc") or []
    except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
        return (Package("rankc", "", "0", None),)
    packages: dict[str, Package] = {}
    for text in asked:
        extra = re.search(r"extra == ['\"](\w+)['\"]", text)
        found = _REQUIREMENT.match(text)
        if found and (extra is None or extra[1] in _SHOWN) and found[1] != "rankc":
            name, wanted = found[1], found[2]
            package = Package(name, extra[1] if extra else "", wanted, _version(name))
            packages.setdefault(name, package)  # `train` repeats what `compiler` asks for
    return tuple(sorted(packages.values(), key=lambda p: ("", *_SHOWN).index(p.extra)))


def _onnxruntime() -> Backend:
    version = _version("onnxruntime") or _version("onnxruntime-gpu")
    reason = onnxruntime.available() or _trial()
    return Backend("onnxruntime", version, reason, reason, "pip install 'rankc[cpu]'")


def _trial() -> str | None:
    """Make a model and run it; None if that went well."""
    try:
        ir: Any = importlib.import_module("onnx_ir")
        x = ir.val("x", ir.DataType.FLOAT, ["batch", 2])
        y = ir.node("Relu", [x])
        graph = ir.Graph([x], y.outputs, nodes=[y], opset_imports={"": 18}, name="trial")
        y.outputs[0].name, y.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
        session = importlib.import_module("rankrt").open_model(
            ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
        )
        numpy = importlib.import_module("numpy")
        out = session.run({"x": numpy.array([[-1, 2]], numpy.float32)})["y"]
        return None if out.tolist() == [[0, 2]] else f"a trial model gave {out.tolist()}"
    except ImportError as error:
        return f"{error.name} is not installed, so no model can be made to try it"
    except Exception as error:
        return f"a trial model failed: {type(error).__name__}: {error}"


def _tensorrt(name: str) -> Backend:
    extra = "rtx" if name == "tensorrt-rtx" else "gpu"
    version = _version(tensorrt.PACKAGES[name])
    runs = tensorrt.available(name)
    builds = None if version is None else _builder(tensorrt.MODULES[name])
    if version is None:
        builds = runs
    return Backend(name, version, builds, runs, f"pip install 'rankc[{extra}]'")


def _builder(module: str) -> str | None:
    """Whether its builder comes up, in a process of its own; None if so."""
    code = f"import {module} as t; assert t.Builder(t.Logger(t.Logger.ERROR))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its builder did not come up within {_SECONDS} s"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"status {done.returncode}")


def _warnings() -> list[str]:
    found = []
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files "
            "and CUDA is lost: pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _package_line(package: Package) -> str:
    extra = f"rankc[{package.extra}]" if package.extra else "rankc"
    state = package.version or "not installed"
    if package.ok:
        return f"{package.name:<22} {state}"
    return f"{package.name:<22} {state}; {package.wanted} or newer: pip install '{extra}'"


def _backend_lines(backend: Backend) -> list[str]:
    head = f"{backend.name:<14} {backend.version or '':<12}"
    if backend.version is None:
        return [f"{head} not installed: {backend.install}"]
    builds = "builds engines" if backend.builds is None else f"cannot build: {backend.builds}"
    runs = "runs" if backend.runs is None else f"cannot run: {backend.runs}"
    if backend.name == "onnxruntime":
        return [f"{head} {runs}"]
    return [f"{head} {builds}", f"{'':<27} {runs}"]
