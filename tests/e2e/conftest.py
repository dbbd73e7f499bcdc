from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from projects import Done, Project, Refusal, click_project
from rankc.errors import Exit

GATES = [
    {"metric": "auc", "goal": "max-degradation", "value": 0.05},
    {"metric": "size_ratio", "goal": "threshold", "value": 1.5},
]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A recipe with two gates, its model and its data; not to be changed."""
    return click_project(tmp_path_factory.mktemp("template"), gates=GATES)


@pytest.fixture
def small(template: Project, tmp_path: Path) -> Project:
    """A copy of the template."""
    return Project(Path(shutil.copytree(template.folder, tmp_path / "project")))


@pytest.fixture(scope="session")
def compiled(template: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Done]:
    """The template compiled once, and how that went; not to be changed."""
    folder = tmp_path_factory.mktemp("compiled") / "project"
    project = Project(Path(shutil.copytree(template.folder, folder)))
    return project, project.rankc("compile")


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Exit code, words that name the culprit, no traceback, and nothing written anywhere."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def check(spoiled: Project, code: Exit, *words: str) -> Done:
        existed, before = spoiled.out.exists(), spoiled.bundle()
        done = spoiled.rankc("compile")
        assert done.code == code, done.out + done.err
        assert done.last.startswith("FAILED | ")
        told = done.err + done.last
        assert [word for word in words if word not in told] == [], told
        assert "Traceback" not in told
        assert "Warning" not in done.err
        assert spoiled.out.exists() == existed
        assert spoiled.bundle() == before
        assert spoiled.leftovers() == []
        assert list(temporary.iterdir()) == []
        return done

    return check
