"""Every pass, in the order the pipeline runs them. To add one: write its file, add it here."""

from rankc.passbase import ExactPass, Pass
from rankc.passes.embedding import Embedding
from rankc.passes.lowrank import LowRank

EXACT_PASSES: tuple[type[ExactPass], ...] = ()
PASSES: tuple[type[Pass], ...] = (Embedding, LowRank)
