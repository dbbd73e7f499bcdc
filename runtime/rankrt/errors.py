"""What can go wrong with a bundle; who has to act decides the class and the exit code."""

from __future__ import annotations

from typing import ClassVar


class RankrtError(Exception):
    """An error that a user can act on. The message says what, where, and what to do."""

    exit_code: ClassVar[int] = 1


class FeedError(RankrtError):
    """The arrays handed to a model do not fit it; for whoever calls `run`."""

    exit_code = 2


class BundleError(RankrtError):
    """The bundle is damaged, changed, foreign or hostile; for whoever made or copied it."""

    exit_code = 3


class BackendError(RankrtError):
    """Nothing on this machine can run the model, with the reasons; for whoever runs the machine."""

    exit_code = 6
