"""The command line: look at a bundle, test it, time it."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankrt import bench
from rankrt.bundle import Bundle, Contents, engines_by_preference, load, read, why_not
from rankrt.device_bench import DeviceTiming, device_facts, print_device, time_on_device
from rankrt.errors import BackendError, BundleError, RankrtError
from rankrt.gates import check_gates
from rankrt.manifest import BACKENDS, Manifest
from rankrt.power import watching
from rankrt.session import Array

OK, INTERNAL, USAGE, GOLDEN, PERFORMANCE, INTERRUPTED = 0, 1, 2, 4, 5, 130

_EPILOG = """\
A bundle is the folder that `rankc compile` wrote, or a .tar of it. Every file is checked against
its sha256 before anything is opened; nothing is changed.

exit codes: 0 fine; 2 wrong usage or inputs; 3 the bundle is damaged, changed or of another
version; 4 its outputs are not the golden ones, or an accuracy gate failed; 5 a size or latency
gate failed; 6 nothing here can run it; 130 interrupted
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; errors become one message and an exit code, never a traceback."""
    options = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Δ
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except RankrtError as error:
        print(f"FAILED | {_shown(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("FAILED | interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `rankrt info b | head`: whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if options.traceback:
            raise
        text = f"{type(error).__name__}: {error}"
        print(
            f"FAILED | a bug of rankrt's: {_shown(text)}; --traceback shows where", file=sys.stderr
        )
        return INTERNAL


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "rankrt",
        description="Look at, test and time a bundle.",
        epilog=_EPILOG,
        formatter_class=raw,
    )
    parser.add_argument("--traceback", action="store_true", help="show where a bug of ours struck")
    verbs = parser.add_subparsers(required=True, metavar="info | selftest | gate | bench")
    _add(verbs, "info", _info, "what is in it, what would run it here, and why the rest would not")
    selftest = _add(verbs, "selftest", _selftest, "does it compute here what it computed when made")
    gate = _add(verbs, "gate", _gate, "do the recipe's gates hold here, as far as this can tell")
    benchmark = _add(verbs, "bench", _bench, "how fast it is here, in time and memory")
    for verb in (selftest, gate, benchmark):
        verb.add_argument("--backend", choices=BACKENDS, help="use this one, or fail")
        verb.add_argument(
            "--threads", type=int, default=1, help="of ONNX Runtime; 0: its choice (default 1)"
        )
    benchmark.add_argument(
        "--batch", type=_positive, nargs="+", default=[1, 32, 256], metavar="N",
        help="rows a call (default 1 32 256)",
    )  # fmt: skip
    for verb in (gate, benchmark):
        verb.add_argument(
            "--seconds", type=float, default=1.0, help="spent on each batch size (default 1)"
        )
    benchmark.add_argument(
        "--random", action="store_true", help="made-up inputs even where there are golden rows"
    )
    benchmark.add_argument(
        "--dim", action="append", default=[], type=_dimension, metavar="NAME=N",
        help="the size of another named dimension of made-up inputs",
    )  # fmt: skip
    return parser


def _add(verbs: Any, name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("bundle", help="the bundle's folder, or its .tar")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=command)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _dimension(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not like seq=128")
    return name, int(size)


def _info(options: argparse.Namespace) -> int:
    contents = read(options.bundle)
    try:
        facts = _facts(contents)
    finally:
        contents.close()
    if options.json:
        return _print_json(facts)
    manifest = contents.manifest
    many = len(manifest.files)
    count = f"{many} files" if many != 1 else "1 file"
    _line(
        "bundle",
        manifest.name,
        f"{_size(facts['size_bytes'])} in {count}, every sha256 matches",
    )
    _line("target", manifest.target)
    for label, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        for i, spec in enumerate(specs):
            _line("" if i else label, str(spec), _ids(manifest, spec.name))
    _line("ranks", _ranks(manifest.ranks))
    for i, engine in enumerate(facts["engines"]):
        _line("" if i else "engines", engine["name"], engine["reason"] or "can be tried")
    _line("would run", facts["would_use"] or "nothing here")
    versions = (f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    _line("made by", ", ".join(versions) or "unknown versions")
    return OK


def _facts(contents: Contents) -> dict[str, Any]:
    from rankrt.backends import onnxruntime

    manifest = contents.manifest
    engines: list[dict[str, Any]] = [
        {**dataclasses.asdict(engine), "name": engine.name, "reason": why_not(engine)}
        for engine in engines_by_preference(manifest)
    ]
    engines.append({"name": "onnxruntime", "reason": onnxruntime.available()})
    return {
        **json.loads(manifest.to_json()),
        "engines": engines,
        "would_use": next((e["name"] for e in engines if e["reason"] is None), None),
        "size_bytes": sum(info.size_bytes for info in manifest.files.values()),
    }


def _selftest(options: argparse.Namespace) -> int:
    with load(options.bundle, backend=options.backend, threads=options.threads) as bundle:
        result = bundle.check_golden()
    if result is None:
        raise BundleError(
            f"{options.bundle} has no golden rows to test with: recompile with a validation set"
        )
    if options.json:
        facts = {**_opened(bundle), **dataclasses.asdict(result), "ok": result.ok}
        return _print_json(facts, OK if result.ok else GOLDEN)
    _show_backend(bundle)
    error = f"max |Δ| {result.max_abs_err:.1e} (bound {result.bound:.0e})"
    _line("golden", f"{result.passed} of {result.rows} inputs, {error}")
    if not result.ok:
        print(f"FAILED | {bundle.backend} does not reproduce the golden outputs on this machine")
        return GOLDEN
    print("OK")
    return OK


def _gate(options: argparse.Namespace) -> int:
    with load(options.bundle, backend=options.backend, threads=options.threads) as bundle:
        result = bundle.check_golden()
        checked = check_gates(bundle, options.seconds)
    failed = [one for one in checked if one.passed is False]
    missed = result is not None and not result.ok
    bad_answers = missed or any(one.gate.kind == "accuracy" for one in failed)
    # What cannot be decided here did not hold where it could be: a device must not let it pass.
    left = sum(one.passed is None for one in checked)
    unproven = left > 0 and not failed and bundle.manifest.metrics.get("passed") is False
    code = GOLDEN if bad_answers or unproven else PERFORMANCE if failed else OK
    if options.json:
        facts = {"golden": None if result is None else {**dataclasses.asdict(result)}}
        rows = [dataclasses.asdict(one) for one in checked]
        return _print_json({**_opened(bundle), **facts, "gates": rows, "ok": code == OK}, code)
    _show_backend(bundle)
    golden = "none kept" if result is None else f"{result.passed} of {result.rows} inputs"
    _line("golden", golden)
    for i, one in enumerate(checked):
        seen = "" if one.value is None else f"{one.value:.6g}"
        mark = {None: "not decided", True: "pass", False: "FAIL"}[one.passed]
        _line("" if i else "gates", f"{mark:<12}{one.name}", one.gate.text, seen, f"({one.note})")
    words = [*(["golden outputs missed"] if missed else []), *(one.name for one in failed)]
    words += ["the bundle did not pass its gates when it was compiled"] if unproven else []
    told = f", {left} not decided here" if left else ""
    held = len(checked) - left - len(failed)
    verdict = (
        _shown(", ".join(words)) if words else "1 gate holds" if held == 1 else f"{held} gates hold"
    )
    print(f"{'FAILED' if words else 'PASSED'} | {verdict}{told}")
    return code


def _bench(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    with load(options.bundle, backend=options.backend, threads=options.threads) as bundle:
        load_ms = 1e3 * (time.perf_counter() - start)
        golden = None if options.random else bundle.golden_rows()
        inputs = golden[0] if golden else None
        timings = [_time(bundle, batch, inputs, options) for batch in _batches(bundle, options)]
        device = _time_device(bundle, inputs, options)
    peak = bench.peak_memory_bytes()
    source = "golden rows, repeated" if inputs else "made up (ids uniform in their ranges)"
    if options.json:
        rows = [dataclasses.asdict(timing) for timing in timings]
        facts = {**_opened(bundle), "load_ms": load_ms, "peak_memory_bytes": peak}
        facts |= {"inputs": source, "threads": options.threads, "batches": rows}
        return _print_json({**facts, "device": device_facts(device)})
    _show_backend(bundle)
    _line("load", f"{load_ms:.1f} ms, every hash checked and the model opened")
    _line("inputs", source)
    _print_timings(timings, bundle.backend, options.threads)
    print_device(device)
    if peak is not None:
        _line("memory", f"{_size(peak)} at most, of this whole process with Python and the backend")
    return OK


def _batches(bundle: Bundle, options: argparse.Namespace) -> list[int]:
    """The batch sizes asked for; a model with a fixed batch has only its own."""
    specs = bundle.manifest.inputs
    if any(bench.has_batch(spec) for spec in specs):
        return list(options.batch)
    return [int(specs[0].shape[0] or 1) if specs and specs[0].shape else 1]


def _feeds(
    bundle: Bundle, batch: int, golden: Mapping[str, Array] | None, options: argparse.Namespace
) -> dict[str, Array]:
    if golden is not None:
        return bench.tiled(golden, bundle.manifest.inputs, batch)
    return bench.made_up(bundle.manifest, batch, dict(options.dim))


def _time(
    bundle: Bundle, batch: int, golden: Mapping[str, Array] | None, options: argparse.Namespace
) -> bench.Timing:
    feeds = _feeds(bundle, batch, golden, options)
    return bench.time_batch(lambda: bundle.run(feeds), batch, options.seconds)


def _time_device(
    bundle: Bundle, golden: Mapping[str, Array] | None, options: argparse.Namespace
) -> Sequence[DeviceTiming] | str:
    """The GPU's own times, nothing where the bundle does not run on one, or why there are none."""
    from rankrt.backends.tensorrt import TensorRTSession

    session = bundle.session
    if not isinstance(session, TensorRTSession):
        return []
    timings = []
    try:
        for batch in _batches(bundle, options):
            with session.on_device(_feeds(bundle, batch, golden, options)) as calls:
                watch = functools.partial(watching, session.bus_id)
                timings.append(time_on_device(calls, batch, options.seconds, watch))
    except BackendError as error:
        return str(error)
    return timings


def _print_timings(timings: Sequence[bench.Timing], backend: str, threads: int) -> None:
    whole = backend == "onnxruntime" and threads == 1
    cpu = "all of it" if whole else "this thread's part only"
    print(f"\n{'batch':>7} {'runs':>6} {'wall p50':>10} {'p95':>10} {'CPU p50':>10} {'p95':>10}")
    for t in timings:
        times = (t.wall_p50_ms, t.wall_p95_ms, t.cpu_p50_ms, t.cpu_p95_ms)
        print(f"{t.batch:>7} {t.runs:>6} " + " ".join(f"{ms:>10.4f}" for ms in times))
    print(
        "milliseconds a call of Bundle.run, its checks included; CPU: time of the calling thread, "
        f"{cpu}.\nOn a busy machine wall times mislead: compare CPU times.\n"
    )


def _opened(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.manifest.name,
        "backend": bundle.backend,
        "version": bundle.session.version,
        "refused": [{"name": name, "reason": reason} for name, reason in bundle.refused],
    }


def _show_backend(bundle: Bundle) -> None:
    _line("bundle", bundle.manifest.name)
    used = bundle.engine.name if bundle.engine else bundle.backend
    _line("backend", f"{used} {bundle.session.version}")
    for name, reason in bundle.refused:
        _line("", f"{name} refused: {reason}")


def _ids(manifest: Manifest, name: str) -> str:
    ids = manifest.id_ranges.get(name)
    if ids is None:
        return ""
    most = f"0..{ids}" if isinstance(ids, int) else f"0..{min(ids)} to 0..{max(ids)} by column"
    return f"ids {most}, checked at every call"


def _ranks(ranks: Mapping[str, int]) -> str:
    if not ranks:
        return "none: nothing was factored"
    values = list(ranks.values())
    middle = statistics.median(values)
    return f"{len(values)} sites, rank {min(values)} to {max(values)}, median {middle:g}"


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _line(label: str, *parts: str) -> None:
    print(f"{label:<9} " + _shown("  ".join(part for part in parts if part)))


def _shown(text: str) -> str:
    """The text with control characters escaped: a bundle's names must not drive the terminal."""
    kept = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return "".join(kept)


def _print_json(facts: Mapping[str, Any], code: int = OK) -> int:
    print(json.dumps(facts, indent=2, sort_keys=True))
    return code
