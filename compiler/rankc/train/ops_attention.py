"""Attention, and the rotation of positions before it.

A. Vaswani et al., "Attention is all you need", NIPS 2017; J. Ainslie et al., "GQA", EMNLP 2023;
J. Su et al., "RoFormer", 2021.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.train.registry import Builder, Function, Op, Tensor

_RAW, _CAPPED, _MASKED, _SHARES = range(4)  # what the fourth output of Attention is


@dataclasses.dataclass(frozen=True, slots=True)
class _Attention:
    """Attributes of the node."""

    q_heads: int
    kv_heads: int
    scale: float  # 0: by the size of a head
    causal: bool
    softcap: float
    precision: torch.dtype | None  # of softmax
    shown: int
    window: tuple[int, int]  # how far back and on a query sees; -1: no limit

    @classmethod
    def of(cls, op: Op) -> _Attention:
        precise = op.node.attributes.get("softmax_precision") is not None
        found = cls(
            op.integer("q_num_heads", 0), op.integer("kv_num_heads", 0), op.number("scale", 0.0),
            bool(op.integer("is_causal", 0)), op.number("softcap", 0.0),
            op.dtype("softmax_precision") if precise else None,
            op.integer("qk_matmul_output_mode", 0),
            (op.integer("left_window_size", -1), op.integer("right_window_size", -1)),
        )  # fmt: skip
        if found.shown not in range(4):
            raise op.refuse(f"qk_matmul_output_mode {found.shown}; 0 to 3 are supported")
        return found

    def limited(self) -> bool:
        """Whether positions say what a query may see."""
        return self.causal or self.window != (-1, -1)

    def unseen(self, queries: int, keys: int, before: Tensor | int) -> Tensor:
        """(queries, keys) or (rows, 1, queries, keys): -inf where a query must not look, else 0.

        Args:
            queries: how many.
            keys: how many.
            before: keys that precede the first query; (rows,) where that differs.
        """
        ahead = torch.arange(keys) - torch.arange(queries)[:, None]
        if isinstance(before, Tensor):
            ahead = ahead.to(before.device) - before.reshape(-1, 1, 1, 1)
        else:
            ahead = ahead - before
        hidden = ahead > 0 if self.causal else torch.zeros_like(ahead, dtype=torch.bool)
        back, on = self.window
        if back >= 0:
            hidden = hidden | (-ahead > back)
        if on >= 0:
            hidden = hidden | (ahead > on)
        return _barred(hidden)


def _barred(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -math.inf)


def _heads(x: Tensor, count: int) -> Tensor:
    """(rows, positions, heads * size) to (rows, heads, positions, size)."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2) if x.dim() == 3 else x


def _attention(op: Op) -> Function:
    how = _Attention.of(op)

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        filled: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        flat = q.dim() == 3
        if flat and not (how.q_heads and how.kv_heads):
            raise op.refuse("inputs of three axes need q_num_heads and kv_num_heads")
        q, k, v = _heads(q, how.q_heads), _heads(k, how.kv_heads), _heads(v, how.kv_heads)
        if past_key is not None and past_value is not None:
            k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
        bias = _bias(how, q, k, mask, filled, 0 if past_key is None else past_key.shape[2])
        y, shown = _attend(how, q, k, v, bias, op.outputs > 3)
        y = y.transpose(1, 2).flatten(2) if flat else y
        return (y, k, v) if shown is None else (y, k, v, shown)

    return attention


def _bias(
    how: _Attention, q: Tensor, k: Tensor, mask: Tensor | None, filled: Tensor | None, past: int
) -> Tensor | None:
    """What is added to the scores, or None: the mask, what positions hide, keys not filled yet."""
    queries, keys = q.shape[2], k.shape[2]
    found: list[Tensor] = []
    if mask is not None:
        short = keys - mask.shape[-1]
        if mask.dtype is torch.bool:
            found.append(_barred(~F.pad(mask, (0, short))).to(q.device))
        else:
            found.append(F.pad(mask, (0, short), value=-math.inf).to(q.device))
    if how.limited():
        before = past if filled is None else filled.reshape(-1) - queries
        found.append(how.unseen(queries, keys, before).to(q.device))
    if filled is not None:
        unfilled = torch.arange(keys, device=filled.device) >= filled.reshape(-1, 1, 1, 1)
        found.append(_barred(unfilled).to(q.device))
    return sum(found[1:], found[0]).to(q.dtype) if found else None


def _attend(
    how: _Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, show: bool
) -> tuple[Tensor, Tensor | None]:
    """What each query gets, and where it is asked for, the scores at the stage asked for.

    A query that may look at nothing gets zeros.
    """
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    root = torch.tensor(math.sqrt(how.scale or q.shape[-1] ** -0.5), dtype=q.dtype)
    scores = (q * root) @ (k.transpose(-2, -1) * root)
    capped = how.softcap * torch.tanh(scores / how.softcap) if how.softcap else scores
    masked = capped if bias is None else capped + bias
    wide = masked if how.precision is None else masked.to(how.precision)
    shares = _softmax(wide, bias).to(q.dtype)
    shown = (scores, capped, masked, shares)[how.shown] if show else None
    return shares @ v, shown


def _softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    """0 where a row is all -inf, and no NaN in its gradient."""
    if bias is None:
        return F.softmax(scores, -1)
    blind = (bias == -math.inf).all(-1, keepdim=True)
    return F.softmax(scores.masked_fill(blind, 0), -1).masked_fill(blind, 0)


def _rotary(op: Op) -> Function:
    heads, paired = op.integer("num_heads", 0), bool(op.integer("interleaved", 0))
    turned = op.integer("rotary_embedding_dim", 0)

    def rotary(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        flat = x.dim() == 3
        if flat and not heads:
            raise op.refuse("an input of three axes needs num_heads")
        y = x.reshape(*x.shape[:2], heads, -1) if flat else x.transpose(1, 2)
        size = turned or y.shape[-1]
        if positions is not None:
            cos, sin = (F.embedding(positions.to(table.device), table) for table in (cos, sin))
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        part = y[..., :size]
        a, b = (part[..., ::2], part[..., 1::2]) if paired else part.chunk(2, -1)
        both = cos * a - sin * b, sin * a + cos * b
        done = torch.stack(both, -1).flatten(-2) if paired else torch.cat(both, -1)
        y = torch.cat((done, y[..., size:]), -1) if size < y.shape[-1] else done
        return y.flatten(2) if flat else y.transpose(1, 2)

    return rotary


OPERATORS: Mapping[str, Builder] = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
}
