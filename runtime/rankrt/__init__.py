"""Load a bundle and run it. Imports numpy, nothing else."""

from __future__ import annotations

from rankrt.bundle import Bundle, load
from rankrt.errors import BackendError, BundleError, FeedError, RankrtError
from rankrt.manifest import Engine, FileInfo, Golden, Manifest
from rankrt.session import Array, Session, TensorSpec, open_model

__all__ = [
    "Array",
    "BackendError",
    "Bundle",
    "BundleError",
    "Engine",
    "FeedError",
    "FileInfo",
    "Golden",
    "Manifest",
    "RankrtError",
    "Session",
    "TensorSpec",
    "load",
    "open_model",
]
