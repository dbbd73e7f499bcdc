"""A training that was cut off goes on: all of its state in one file, written whole or not at all.

The file is a line that says what it is, the sha256 of what follows, a key, and tensors and plain
values as torch writes them. It is read with `weights_only`, so that nothing in it can run, and only
after its hash was checked, so that no flipped bit is trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from rankc.errors import MachineError
from rankc.train.interpreter import Interpreter

_MAGIC = b"rankc checkpoint 1\n"
_HASH = 32  # bytes of a sha256


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file, and for what it holds."""

    path: Path
    key: str  # sha256 of all that the training depends on, in hex

    def read(self) -> tuple[dict[str, Any] | None, str]:
        """The state, or None, and why there is none where a file was found."""
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"{self.path} cannot be read ({error.strerror})"
        head, body = len(_MAGIC) + _HASH, raw[len(_MAGIC) + _HASH :]
        if raw[:head] != _MAGIC + hashlib.sha256(body).digest():
            return None, f"{self.path} is damaged or no checkpoint"
        if body[:_HASH] != bytes.fromhex(self.key):
            return None, f"{self.path} is of another recipe, model, data, machine or version"
        state = torch.load(io.BytesIO(body[_HASH:]), map_location="cpu", weights_only=True)
        assert isinstance(state, dict), self.path
        return state, ""

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file as a whole; its folder is made where it is missing.

        Raises:
            MachineError: it cannot be written; an older one is as it was.
        """
        stream = io.BytesIO()
        torch.save(state, stream)
        body = bytes.fromhex(self.key) + stream.getvalue()
        whole = self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with whole.open("xb") as file:
                    file.write(_MAGIC + hashlib.sha256(body).digest())
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(whole, self.path)
            finally:
                whole.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(
                f"{self.path}: the checkpoint cannot be written: {error.strerror}; free some disk "
                "space, or write into another folder"
            ) from error


def _code() -> str:
    """A hash of what trains: a checkpoint of another version of it is not gone on from."""
    found, own = hashlib.sha256(), Path(__file__).parent
    for file in [*sorted(own.glob("*.py")), *sorted((own.parent / "passes").glob("*.py"))]:
        found.update(file.read_bytes())
    return found.hexdigest()


CODE = _code()


def key_of(*parts: object) -> str:
    """A hash of values whose text tells all of them apart."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()


def digest_of(net: Interpreter) -> str:
    """A hash of a net: its graph, its weights, and which of them are trained."""
    found = hashlib.sha256()
    for node in net.graph.all_nodes():
        inputs = [None if value is None else value.name for value in node.inputs]
        outputs = [value.name for value in node.outputs]
        attributes = [str(a) for a in node.attributes.values() if a.type.name != "GRAPH"]
        found.update(repr((node.domain, node.op_type, inputs, outputs, attributes)).encode())
    trained = {name for name, _ in net.named_parameters()}
    for name, tensor in net.state_dict().items():
        found.update(repr((name, name in trained, tensor.dtype, tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().flatten()
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
