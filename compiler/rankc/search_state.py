"""What a search has found so far, in a file beside the bundle: a run that was cut off goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rankc.errors import RecipeError
from rankc.search_points import Trial

FORMAT = 1
_TRIALS: TypeAdapter[list[Trial]] = TypeAdapter(list[Trial])


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """The file, and for what it holds."""

    path: Path
    key: str  # a hash of all that the trials depend on
    required: bool = False  # a file that is there and cannot be gone on from is an error

    def read(self) -> tuple[list[Trial], str]:
        """The trials, and why there are none where a file was found; empty without one.

        Raises:
            RecipeError: a file is there that cannot be gone on from, and it is required.
        """
        trials, why = self._read()
        if why and self.required:
            raise RecipeError(f"nothing to resume: {why}; --fresh deletes it")
        return trials, f"{why}; the search starts anew" if why else ""

    def _read(self) -> tuple[list[Trial], str]:
        try:
            tree: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return [], ""
        except (OSError, ValueError):
            return [], f"{self.path} cannot be read"
        if not isinstance(tree, dict) or (tree.get("format"), tree.get("key")) != (
            FORMAT,
            self.key,
        ):
            return [], f"{self.path} is of another recipe, data or version"
        try:
            return _TRIALS.validate_json(json.dumps(tree.get("trials"))), ""
        except ValidationError:
            return [], f"{self.path} is damaged"

    def write(self, trials: Sequence[Trial]) -> None:
        """Replace the file as a whole.

        Raises:
            OSError: it cannot be written; an older one is as it was.
        """
        tree = {
            "format": FORMAT,
            "key": self.key,
            "trials": [dataclasses.asdict(trial) for trial in trials],
        }
        whole = self.path.with_name(f".{self.path.name}-{secrets.token_hex(4)}")
        try:
            with whole.open("x", encoding="utf-8") as file:
                file.write(json.dumps(tree, indent=1, sort_keys=True, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, self.path)
        finally:
            whole.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def state_path(out: Path) -> Path:
    """Where the state of the search for a bundle lies."""
    return out.with_name(f"{out.name}.search.json")
