"""Networks as users write them, exported as users export them, small."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from models.ctr.networks import DCN
from models.exporting import quiet
from numpy.typing import NDArray
from torch import nn

Array = NDArray[Any]
Tensor = torch.Tensor
HIDDEN, HEADS, WORDS = 16, 4, 40
BATCH, POSITIONS, PAST = (torch.export.Dim(name) for name in ("batch", "positions", "past"))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.across = nn.Linear(12, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.across(F.relu(self.up(x)))))
        return found


class Residual(nn.Module):
    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(2)])
        self.shortcut = nn.Sequential(
            nn.Conv2d(inner, width, 1, stride, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Residual(8, 8, 1), Residual(8, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.pool(F.relu(self.norm(self.stem(image)))))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


def _split(x: Tensor) -> Tensor:
    """(rows, positions, heads * size) to (rows, heads, positions, size)."""
    return x.reshape(x.shape[0], x.shape[1], -1, HIDDEN // HEADS).transpose(1, 2)


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
        self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN) for _ in range(2)])

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (_split(layer(x)) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norms[0](x + self.out(y.transpose(1, 2).reshape(x.shape)))
        found: Tensor = self.norms[1](x + self.down(F.gelu(self.up(x))))
        return found


class Encoder(nn.Module):
    """J. Devlin et al., "BERT", NAACL 2019."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, HIDDEN), nn.Embedding(6, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.layers = nn.ModuleList([EncoderLayer() for _ in range(2)])
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places.weight)
        seen = mask[:, None, None, :].expand(-1, 1, ids.shape[1], -1)  # ONNX Runtime wants it whole
        for layer in self.layers:
            x = layer(x, seen)
        found: Tensor = self.head(torch.tanh(x[:, 0]))
        return found


class DecoderLayer(nn.Module):
    """Two heads of keys and values for four of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(HIDDEN, HIDDEN // 2, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(HIDDEN, 2 * HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        self.norms = nn.ModuleList([nn.RMSNorm(HIDDEN, eps=1e-5) for _ in range(2)])

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = self.norms[0](x)
        q, k = (turned(_split(layer(y)), *turn) for layer in (self.query, self.key))
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], _split(self.value(y))), 2)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        x = x + self.out(z.transpose(1, 2).reshape(x.shape))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), k, v


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """J. Su et al., "RoFormer", 2021, halves against each other."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Decoder(nn.Module):
    """H. Touvron et al., "LLaMA", 2023, one layer with its cache coming in and going out."""

    turns: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, HIDDEN)
        self.layer, self.norm = DecoderLayer(), nn.RMSNorm(HIDDEN, eps=1e-5)
        self.head = nn.Linear(HIDDEN, WORDS, bias=False)
        size = HIDDEN // HEADS
        speeds = 10000.0 ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("turns", torch.cat((speeds, speeds)))

    def forward(
        self, ids: Tensor, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        before, count = past_key.shape[2], ids.shape[1]
        at = torch.arange(before, before + count)
        seen = torch.arange(before + count)[None, :] <= at[:, None]
        angles = at[:, None] * self.turns
        x, k, v = self.layer(
            self.words(ids), (angles.cos(), angles.sin()), seen, (past_key, past_value)
        )
        return self.head(self.norm(x)), k, v


class Example:
    """A network, and inputs of any number of rows."""

    def __init__(
        self, make: Callable[[], nn.Module], rows: Callable[[int], tuple[Tensor, ...]],
        axes: Mapping[str, Mapping[int, Any]], outputs: tuple[str, ...] = ("y",),
    ) -> None:  # fmt: skip
        self.make, self.rows, self.axes, self.outputs = make, rows, axes, outputs

    def feeds(self, count: int) -> dict[str, Tensor]:
        torch.manual_seed(count)
        return dict(zip(self.axes, self.rows(count), strict=True))


FIELDS = {"a": 20, "b": 7, "c": 11}
EXAMPLES: Mapping[str, Example] = {
    "mlp": Example(Perceptron, lambda n: (torch.randn(n, 12),), {"x": {0: BATCH}}),
    "resnet": Example(ResNet, lambda n: (torch.randn(n, 3, 16, 16),), {"image": {0: BATCH}}),
    "dcn": Example(
        lambda: DCN(FIELDS, 4, dim=6, hidden=(16, 8), init_std=0.5, crosses=2),
        lambda n: (torch.randint(7, (n, 3)), torch.randn(n, 4)),
        {"ids": {0: BATCH}, "dense": {0: BATCH}},
    ),
    "encoder": Example(
        Encoder,
        lambda n: (torch.randint(WORDS, (n, 6)), torch.arange(6) < 7 - torch.arange(n)[:, None]),
        {"ids": {0: BATCH}, "mask": {0: BATCH}},
    ),
    "decoder": Example(
        Decoder,
        lambda n: (torch.randint(WORDS, (n, 5)), torch.randn(n, 2, n, 4), torch.randn(n, 2, n, 4)),
        {
            "ids": {0: BATCH, 1: POSITIONS},
            "past_key": {0: BATCH, 2: PAST},
            "past_value": {0: BATCH, 2: PAST},
        },
        ("y", "present_key", "present_value"),
    ),
}  # fmt: skip


@functools.cache
def exported(name: str, opset: int) -> ir.Model:
    """The network's graph; not to be changed."""
    example = EXAMPLES[name]
    torch.manual_seed(0)
    net = example.make().eval()
    for parameter in net.parameters():  # the exporter makes one of those that are the same
        parameter.data += 0.1 * torch.randn_like(parameter)
    for name_of, buffer in net.named_buffers():
        if name_of.endswith(("running_mean", "running_var")):
            buffer += torch.rand_like(buffer)
    with quiet():
        program = torch.onnx.export(
            net, tuple(example.feeds(3).values()), dynamo=True, opset_version=opset,
            input_names=list(example.axes), output_names=list(example.outputs),
            dynamic_shapes=tuple(example.axes.values()), verbose=False,
            optimize=name != "resnet",  # which would fold BatchNormalization away
        )  # fmt: skip
    assert program is not None
    return program.model
