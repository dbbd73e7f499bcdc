"""Why a layer is what it is: out of a bundle alone, without recipe, model or data."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankc.errors import RecipeError
from rankc.report import text
from rankc.report.sites import percent
from rankrt.bundle import Contents
from rankrt.files import inside

_LOSS = {  # what a loss is, by `planning.sensitivity`
    "gradient": "of squared change of the logit",
    "perturbation": "of squared change of the logit",
    "fisher": "of change of the answer",
    "kl": "nats of KL divergence",
}
_LISTED = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Explained:
    """What the bundle knows of its layers."""

    layers: Sequence[Mapping[str, Any]]  # as in layers.json
    skips: Sequence[Mapping[str, Any]]  # of plan.json, those that are no layers
    timed: Mapping[str, Mapping[str, Any]]  # rewrites that were timed alone, by site
    times: Mapping[str, Mapping[str, Any]]  # of layers within both models, by name
    loss: str  # its unit

    @classmethod
    def of(cls, contents: Contents) -> Explained:
        """Read it.

        Raises:
            BundleError: a file is missing; a bundle of an older version has no layers.json.
        """
        plan, metrics = _part(contents, "plan.json"), _part(contents, "metrics.json")
        layers = _part(contents, "layers.json")["layers"]
        names = {layer["site"] for layer in layers}
        return cls(
            layers,
            [skip for skip in plan["skips"] if skip["name"] not in names],
            {one["site"]: one for one in metrics["layers"] if one["verdict"] != "put back"},
            {one["layer"]: one for one in metrics.get("layer_times", [])},
            _LOSS[plan["sensitivity"]],
        )

    def about(self, name: str) -> dict[str, Any]:
        """Everything about one layer, as `rankc explain --json` prints it.

        Raises:
            RecipeError: there is no such layer; names the nearest, and lists them.
        """
        for layer in self.layers:
            if layer["site"] == name:
                timed = self.timed.get(name, {}).get("latency")
                return {**layer, "timed": timed, "times": self.times.get(name)}
        for skip in self.skips:
            if skip["name"] == name:
                return {"site": name, "pass_name": skip["pass_name"], "reason": skip["reason"]}
        names = [layer["site"] for layer in self.layers] + [skip["name"] for skip in self.skips]
        near = difflib.get_close_matches(name, names, n=3)
        guess = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        listed = ", ".join(names[:_LISTED]) or "none"
        raise RecipeError(f"no layer {name!r} in the bundle\n  {guess}layers: {listed}{more}")

    def lines(self, name: str) -> Iterator[str]:
        """The same in words; raises as `about`."""
        layer = self.about(name)
        if "shape" not in layer:
            yield f"skipped by {layer['pass_name']}: {layer['reason']}"
        elif layer["rank"] is None:
            yield f"{_shape(layer)} {layer['operator']}, left dense"
            yield layer["reason"]
            if (best := layer["smaller"]) is not None:
                what = f"{_rank(best)} would save {_amounts(best['saves'])}"
                yield f"{what} and cost {self._cost(best['loss'])}, predicted"
        else:
            yield from self._rewritten(layer)

    def _rewritten(self, layer: Mapping[str, Any]) -> Iterator[str]:
        shape, rank = _shape(layer), _rank(layer)
        yield f"{shape} {layer['operator']} → {rank} of {layer['full_rank']} ({layer['pass_name']})"
        yield (
            f"kept {_kept(layer['error'])} of the energy of its outputs; "
            f"error {percent(layer['error'])} of their variance, predicted"
        )
        dense, now = layer["dense_costs"], layer["costs"]
        saved = {unit: dense[unit] - now[unit] for unit in dense}
        yield f"saves {_amounts(saved)}; costs {self._cost(layer['loss'])}, predicted"
        yield _time(layer)
        steps = []
        if (less := layer["smaller"]) is not None:
            what = f"{_rank(less)} would save {_amounts(less['saves'])} more"
            steps.append(f"{what} and cost {self._cost(less['loss'])} more")
        if (more := layer["larger"]) is not None:
            what = f"{_rank(more)} would take {_amounts(more['takes'])} more"
            steps.append(f"{what} and win back {self._cost(max(-more['loss'], 0.0))}")
        steps.append(f"dense would win back {self._cost(layer['loss'])}")
        yield "; ".join(steps)

    def _cost(self, loss: float) -> str:
        return f"{text.short(loss)} {self.loss}"

    def rows(self) -> list[list[str]]:
        """A line a layer: name, operator, shape, rank, energy, bytes, loss; those skipped last."""
        found = [
            [
                str(layer["site"]),
                str(layer["operator"]),
                _shape(layer),
                "dense" if layer["rank"] is None else _rank(layer).removeprefix("rank "),
                _kept(layer["error"]),
                f"{layer['costs']['size_bytes']:,} of {layer['dense_costs']['size_bytes']:,}",
                text.short(layer["loss"]),
            ]
            for layer in self.layers
        ]
        return found + [[str(s["name"]), "", "", "skipped", "", "", ""] for s in self.skips]


HEAD = ("layer", "operator", "shape", "rank", "energy kept", "bytes", "loss")


def _part(contents: Contents, name: str) -> Any:
    path: Path = inside(contents.folder, name)
    return json.loads(path.read_text("utf-8"))


def _shape(layer: Mapping[str, Any]) -> str:
    return f" {text.TIMES} ".join(map(str, layer["shape"]))


def _rank(choice: Mapping[str, Any]) -> str:
    return f"rank {choice['rank']}" + (f" as {choice['form']}" if choice["form"] else "")


def _kept(error: float) -> str:
    """A share that is less than all is never written as all."""
    if error <= 0:
        return "100 %"
    return "> 99.99 %" if error < 5e-5 else f"{100 * (1 - error):.2f} %"


def _amounts(amounts: Mapping[str, float]) -> str:
    """`602.0 kB and 134,400 MACs`; more instead of less is said with a minus."""
    size, macs = amounts["size_bytes"], amounts["macs"]
    sign = text.MINUS if size < 0 else ""
    words = f"{sign}{text.size(abs(size))}"
    return words + (f" and {macs:,} MACs".replace("-", text.MINUS) if macs else "")


def _time(layer: Mapping[str, Any]) -> str:
    """What it saves within the model, and how it compares alone; both only where measured."""
    parts = []
    if (times := layer["times"]) is not None:
        saved = times["original_ms"] - times["compressed_ms"]
        verb = "saves" if saved >= 0 else "loses"
        parts.append(f"{verb} {text.duration(abs(saved))} a call within the model")
    for size, found in sorted((layer["timed"] or {}).items(), key=lambda item: int(item[0])):
        low, high = found["interval"]
        ratio = f"{found['ratio']:.2f}{text.TIMES} ({low:.2f}{text.RANGE}{high:.2f})"
        parts.append(f"{ratio} the time at batch {size}, by itself")
    return "; ".join(parts) or "time: not timed"
