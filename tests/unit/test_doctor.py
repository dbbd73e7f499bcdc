from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable

import pytest

from rankc.__main__ import main
from rankc.doctor import Package, examine
from rankc.errors import Exit
from rankrt.backends import onnxruntime

Install = Callable[..., None]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that packages have other versions; None: not installed."""
    real = importlib.metadata.version

    def pretend(**changes: str | None) -> None:
        def version(name: str) -> str:
            found = changes.get(name.replace("-", "_"), real(name) if name in changes else "")
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found or real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


def test_it_finds_that_this_machine_can_compile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    names = {package["name"] for package in found["packages"]}
    assert {"numpy", "onnx", "onnx-ir", "pydantic", "pyyaml"} <= names
    assert found["backends"][0]["name"] == "onnxruntime"
    assert found["backends"][0]["runs"] is None
    assert found["gpu"]["present"] == (found["gpu"]["reason"] is None)


def test_a_missing_package_is_told_with_the_command(
    versions: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    versions(onnx_ir=None)
    assert main(["doctor"]) == Exit.ENVIRONMENT
    text = capsys.readouterr().out
    assert (
        "onnx-ir                not installed; 1.0 or newer: pip install 'rankc[compiler]'" in text
    )
    assert "rankc cannot compile here: pip install 'rankc[compiler,cpu]'" in text


def test_a_package_that_is_too_old_is_not_enough(versions: Install) -> None:
    versions(onnx="1.20.0")
    assert not examine().ok


def test_only_some_packages_are_needed_to_compile(versions: Install) -> None:
    versions(torch=None, pyarrow=None)
    assert examine().ok


def test_two_kinds_of_onnxruntime_are_warned_of(versions: Install) -> None:
    versions(onnxruntime_gpu="1.32.0")
    (warning,) = examine().warnings
    assert "both installed" in warning


def test_a_backend_that_does_not_work_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "available", lambda: "libfoo.so is missing")
    found = examine()
    assert not found.ok
    assert "cannot run: libfoo.so is missing" in found.to_text()


def test_a_trial_model_is_really_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import rankrt

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(rankrt, "open_model", broken)
    assert "a trial model failed: RuntimeError: no such kernel" in examine().to_text()


@pytest.mark.parametrize(
    ("version", "wanted", "ok"),
    [
        ("2.13.0+cpu", "2.4", True),
        ("1.9", "1.10", False),
        ("1.10", "1.10", True),
        ("1.10.0rc1", "1.10", True),
        (None, "1", False),
    ],
)
def test_versions_are_compared_by_number(version: str | None, wanted: str, ok: bool) -> None:
    assert Package("x", "", wanted, version).ok is ok
