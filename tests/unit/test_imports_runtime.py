"""The runtime's promise: numpy at import, and nothing of the compiler, ever."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

_BLOCKED = (
    "rankc onnx onnx_ir onnxscript torch onnxruntime tensorrt tensorrt_rtx cuda pydantic yaml rich"
)
_SCRIPT = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {_BLOCKED.split()!r}:
            raise ImportError(f"{{name}} is blocked")

before = set(sys.modules)
sys.meta_path.insert(0, Block())
import rankrt, rankrt.archive, rankrt.bench, rankrt.cli, rankrt.__main__
import rankrt.backends.cuda, rankrt.backends.onnxruntime, rankrt.backends.tensorrt
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(new - set(sys.stdlib_module_names) - {{"numpy", "rankrt"}}))
print(rankrt.backends.onnxruntime.available())
print(rankrt.cli.run(["info", "no-such-bundle"]))
"""


def test_the_runtime_imports_numpy_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    foreign, reason, code = done.stdout.splitlines()
    assert foreign in ("[]", "['_distutils_hack']"), f"imported beside numpy: {foreign}"
    assert reason.startswith("onnxruntime cannot be imported (onnxruntime is blocked): pip install")
    assert code == "3"


def test_importing_the_runtime_opens_no_backend() -> None:
    script = (
        "import rankrt, sys; print([m for m in ('onnxruntime', 'tarfile') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_install_without_extras_needs_numpy_only() -> None:
    required = importlib.metadata.requires("rankc") or []
    assert [r for r in required if "extra ==" not in r] == ["numpy>=1.26"]
