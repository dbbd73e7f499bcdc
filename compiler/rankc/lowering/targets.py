"""Where an engine may have to run, as data.

Sources: the support tables in the documentation of each TensorRT release, the modules of those
versions, and for TensorRT-RTX what its builder did for us.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """A backend's Python package."""

    module: str
    install: str  # what to tell a user who lacks it


PACKAGES: dict[str, Package] = {
    "onnxruntime": Package("onnxruntime", "pip install 'rankc[cpu]'"),
    "tensorrt-rtx": Package(
        "tensorrt_rtx", "pip install 'rankc[rtx]' (x86-64 Linux and Windows only)"
    ),
    "tensorrt": Package("tensorrt", "pip install 'rankc[gpu]', or use the one JetPack brings"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Platform:
    """What one release line of a backend takes."""

    name: str
    backend: str
    since: tuple[int, int]  # first version of the line
    opset_max: int | None  # highest ONNX opset its parser documents; None: no limit seen
    note: str


PLATFORMS: tuple[Platform, ...] = (
    Platform("jetpack6", "tensorrt", (10, 0), 20, "TensorRT 10.3 on Orin (sm_87)"),
    Platform("tensorrt-10.9", "tensorrt", (10, 9), 22, "x86-64 and SBSA"),
    Platform("jetpack7", "tensorrt", (10, 13), 24, "TensorRT 10.13 to 10.16 on Thor and Orin"),
    Platform("tensorrt-11", "tensorrt", (11, 0), 25, "strongly typed networks only"),
    Platform("rtx", "tensorrt-rtx", (1, 0), None, "RTX GPUs; builds without one; not for Jetson"),
)


def platform_for(backend: str, version: str) -> Platform | None:
    """The newest release line that is not newer than `version`, e.g. "10.3.0".

    >>> platform_for("tensorrt", "10.3.0").name
    'jetpack6'
    """
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    lines = [p for p in PLATFORMS if p.backend == backend and p.since <= numbers]
    return max(lines, key=lambda p: p.since, default=None)


def opset_problem(backend: str, version: str, opset: int) -> str | None:
    """Why a model of this opset may not be parsed by that version, else None."""
    platform = platform_for(backend, version)
    if platform is None or platform.opset_max is None or opset <= platform.opset_max:
        return None
    return (
        f"the model has opset {opset}, {backend} {version} ({platform.name}) takes at most"
        f" {platform.opset_max}: export the model with opset_version={platform.opset_max}"
    )
