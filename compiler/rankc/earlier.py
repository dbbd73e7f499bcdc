"""What an earlier run left beside a bundle: gone on from, insisted on, or deleted."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rankc.errors import RecipeError
from rankc.recipe import Recipe
from rankc.search_state import state_path

Resume = Literal["auto", "required", "never"]


@dataclasses.dataclass(frozen=True, slots=True)
class Earlier:
    """Checkpoints of trainings, and how far a search or a family has come."""

    training: Path  # the folder of checkpoints
    state: Path
    resume: Resume = "auto"
    family: bool = False  # the state is a family's index, else it is a search's

    @classmethod
    def beside(cls, bundle: Path, resume: Resume = "auto") -> Earlier:
        """What lies beside a bundle's folder."""
        return cls(training_folder(bundle), state_path(bundle), resume)

    def settle(self, recipe: Recipe) -> None:
        """Delete what is there where nothing is to be gone on with; or see that there is something.

        Args:
            recipe: tells what could be there.

        Raises:
            RecipeError: there is nothing, and something has to be.
        """
        if self.resume == "never":
            self.state.unlink(missing_ok=True)
            if self.training.exists():
                shutil.rmtree(self.training)
        elif self.resume == "required" and not self.told(recipe):
            places = " and ".join(str(place) for place, _ in self._places(recipe))
            looked = f"looked for {places}" if places else "the recipe trains and searches nothing"
            raise RecipeError(f"--resume: nothing to resume, {looked}; run it without --resume")

    def told(self, recipe: Recipe) -> str:
        """What is there of this recipe's, in words; empty where nothing is."""
        found = [
            f"{place} has what was {what}" for place, what in self._places(recipe) if _holds(place)
        ]
        return " and ".join(found)

    def forget(self) -> None:
        """After the bundle is there: all but the training before the plan, which serves others."""
        self.state.unlink(missing_ok=True)
        self.forget_recoveries()

    def forget_recoveries(self) -> None:
        """They are of one plan each, and the plan has been carried out."""
        unfinished = self.training.glob(".*.checkpoint-*")  # of a run that was killed while writing
        for done in (*self.training.glob("recover-*.checkpoint"), *unfinished):
            done.unlink(missing_ok=True)
        if self.training.is_dir() and not any(self.training.iterdir()):
            self.training.rmdir()

    def _places(self, recipe: Recipe) -> Iterator[tuple[Path, str]]:
        if self.family or recipe.search is not None:
            yield self.state, "finished" if self.family else "measured"
        if recipe.train is not None or recipe.recover is not None:
            yield self.training, "trained"


def _holds(place: Path) -> bool:
    return place.is_file() or any(place.glob("*.checkpoint"))


def training_folder(out: Path) -> Path:
    """Where checkpoints lie while a bundle is being made."""
    return out.with_name(f"{out.name}.training")
