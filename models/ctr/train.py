"""Train a click model for one epoch and export it to ONNX."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
from models.ctr.networks import ARCHITECTURES, DCN, EMBEDDING_STD, DeepFM
from models.ctr.rows import Rows, Source
from models.exporting import anonymous, quiet
from numpy.typing import NDArray
from torch import nn  # noqa: TID253

Model = DeepFM | DCN
Floats = NDArray[np.float64]
OPSET = 18


def train(
    arch: str,
    data: Source,
    *,
    dim: int = 16,
    lr: float = 2e-3,
    final_lr: float = 0.5,
    batch_size: int = 512,
    init_std: float = EMBEDDING_STD,
    seed: int = 0,
    quiet: bool = True,
) -> Model:
    """One epoch of Adam; the same arguments give the same weights on the same machine.

    Args:
        arch: "deepfm" or "dcn".
        data: Rows to learn from, read once.
        dim: Width of the embeddings.
        lr: First learning rate; it falls linearly over the epoch.
        final_lr: Last learning rate as a fraction of the first.
        batch_size: Rows per step.
        init_std: Deviation of the initial embeddings.
        seed: Draws initial weights, order of rows and dropout.
        quiet: Print no progress.
    """
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    sizes = dict(zip(data.fields, data.sizes, strict=True))
    model = ARCHITECTURES[arch](sizes, len(data.dense_names), dim, init_std=init_std)
    steps = -(-data.train_rows // batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - (1 - final_lr) * min(1.0, step / steps)
    )
    loss_of = nn.BCEWithLogitsLoss()
    started, total = time.perf_counter(), 0.0
    for step, rows in enumerate(data.train_batches(batch_size, seed), start=1):
        ids, dense, label = _tensors(rows)
        loss = loss_of(model.logit(ids, dense), label[:, None])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if not quiet and (step % 50 == 0 or step == steps):
            spent = time.perf_counter() - started
            print(f"step {step}/{steps}  loss {total / step:.4f}  {spent:.0f} s", flush=True)
    return model.eval()


def _tensors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    dense = torch.from_numpy(rows.dense) if rows.dense.shape[1] else None
    return torch.from_numpy(rows.ids), dense, torch.from_numpy(rows.label)


def export(model: Model, path: str | Path) -> None:
    """Write `model` as one self-contained ONNX file with a dynamic dimension "batch".

    Tables and layers keep their PyTorch names, on initializers (`emb.tailnum.weight`) and on the
    nodes that read them (`emb.tailnum`). What the exporter records about this machine (stack
    traces, paths) is removed, so equal weights give equal bytes.
    """
    fields, dense = len(model.emb), _dense_width(model)
    ids = torch.zeros(2, fields, dtype=torch.int64)
    inputs = (ids, torch.zeros(2, dense)) if dense else (ids,)
    names = ["ids", "dense"][: len(inputs)]
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.onnx.export(
            model.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=["p"],
            dynamic_shapes={name: {0: batch} for name in names},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    clean = anonymous(program.model, "ctr")
    ir.save(clean, path)


def _dense_width(model: Model) -> int:
    first = model.mlp[0]
    if not isinstance(first, nn.Linear):
        raise TypeError(f"the MLP starts with {type(first).__name__}, not with a linear layer")
    tables = [t for t in model.emb.values() if isinstance(t, nn.Embedding)]
    return first.in_features - sum(t.embedding_dim for t in tables)


def predict(path: str | Path, rows: Rows, batch_size: int = 4096) -> Floats:
    """Probabilities (rows,) of an ONNX click model, in ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    parts = []
    for batch in rows.batches(batch_size):
        feeds = {k: v for k, v in (("ids", batch.ids), ("dense", batch.dense)) if k in wanted}
        parts.append(np.asarray(session.run(None, feeds)[0], dtype=np.float64).ravel())
    return np.concatenate(parts)


def predict_torch(model: Model, rows: Rows, batch_size: int = 4096) -> Floats:
    """The same from the PyTorch module: the reference for the exported file."""
    with torch.no_grad():
        parts = [model(*_tensors(b)[:2]).numpy().ravel() for b in rows.batches(batch_size)]
    return np.concatenate(parts).astype(np.float64)


def auc(label: NDArray[np.float32], p: Floats) -> float:
    """Area under the ROC curve: the probability that a positive outranks a negative, ties half."""
    _, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each distinct value, from 1
    positives = label > 0.5
    n, m = int(positives.sum()), int((~positives).sum())
    return float((ranks[place][positives].sum() - n * (n + 1) / 2) / (n * m))


def logloss(label: NDArray[np.float32], p: Floats) -> float:
    """Mean negative log-likelihood in nats."""
    clipped = np.clip(p, 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(label > 0.5, np.log(clipped), np.log1p(-clipped))))
