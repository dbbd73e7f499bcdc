from __future__ import annotations

import numpy as np
import pytest
from models.ctr import flights
from models.ctr.flights import Tables

ROWS = 200
LEAKS = {"dep_time", "dep_delay", "arr_time", "air_time"}


def tables(rows: int = ROWS, seed: int = 0) -> Tables:
    """Small tables with the columns that are read, and NA where the originals have it."""
    rng = np.random.default_rng(seed)

    def drawn(values: list[str], count: int) -> list[str]:
        return [values[i] for i in rng.integers(0, len(values), size=count)]

    hours = [str(hour) for hour in rng.integers(5, 24, size=rows)]
    records = {
        "year": ["2013"] * rows,
        "month": drawn(["1", "2", "12"], rows),
        "day": drawn(["1", "2", "28"], rows),
        "hour": hours,
        "carrier": drawn(["AA", "UA", "B6"], rows),
        "flight": drawn(["1", "11", "112"], rows),
        "tailnum": drawn(["N1", "N2", "N3", "N4"], rows),
        "origin": drawn(["JFK", "LGA", "EWR"], rows),
        "dest": drawn(["SFO", "BOS"], rows),
        "sched_dep_time": [f"{hour}00" for hour in hours],
        "sched_arr_time": [f"{hour}59" for hour in hours],
        "distance": drawn(["200", "2586"], rows),
        "time_hour": [f"2013-01-01T{hour}:00:00Z" for hour in hours],
        "arr_delay": [v if v else "NA" for v in drawn(["-3", "15", "16", "120", ""], rows)],
    }
    stamps = [(o, f"2013-01-01T{h}:00:00Z") for o in ("JFK", "LGA") for h in range(5, 24)]
    weather = {
        "origin": [origin for origin, _ in stamps],
        "time_hour": [stamp for _, stamp in stamps],
        **{name: drawn(["1", "2.5", "NA"], len(stamps)) for name in flights._WEATHER},
    }
    planes = {
        "tailnum": ["N1", "N2", "N3"],
        "manufacturer": ["BOEING", "BOEING", "AIRBUS"],
        "model": ["737", "757", "A320"],
        "seats": ["140", "180", "150"],
        "year": ["1999", "NA", "2004"],
    }
    return Tables(records, weather, planes)


def test_only_flights_that_arrived_are_kept_and_late_is_over_fifteen_minutes() -> None:
    source = tables()
    columns, label = flights.join(source)
    delays = [float(v) for v in source.flights["arr_delay"] if v != "NA"]
    assert 0 < len(label) == len(delays) < ROWS
    assert label.tolist() == [float(delay > 15) for delay in delays]
    assert {len(column) for column in columns.values()} == {len(label)}


def test_what_is_known_only_after_departure_is_not_read() -> None:
    columns, _ = flights.join(tables())
    assert LEAKS.isdisjoint(columns)
    used = {name for names in flights.FIELDS.values() for name in names} | set(flights.DENSE)
    assert used <= set(columns)
    assert "arr_delay" not in used


def test_joins_bring_the_weather_of_the_hour_and_the_plane() -> None:
    source = tables()
    columns, _ = flights.join(source)
    theirs = {
        (origin, stamp): temp
        for origin, stamp, temp in zip(
            source.weather["origin"],
            source.weather["time_hour"],
            source.weather["temp"],
            strict=True,
        )
    }
    for origin, stamp, temp in zip(
        columns["origin"], columns["time_hour"], columns["temp"], strict=True
    ):
        assert temp == theirs.get((origin, stamp), "")
    built = dict(zip(columns["tailnum"], columns["built"], strict=True))
    assert built == {"N1": "1999", "N2": "NA", "N3": "2004", "N4": ""}


def test_ids_are_by_frequency_with_rare_unseen_and_missing_as_zero() -> None:
    codes = np.array([5, 5, 5, 2, 2, 9, 9, 7, -1, -1, -1, -1, 3, 5])
    ids, size = flights.to_ids(codes, train=np.arange(12), min_count=2)
    assert size == 4
    assert ids.tolist() == [1, 1, 1, 2, 2, 3, 3, 0, 0, 0, 0, 0, 0, 1]


def test_a_cross_tells_every_pair_apart_and_is_missing_where_a_part_is() -> None:
    left = np.array([0, 0, 1, 1, 2, -1, 1])
    right = np.array([0, 1, 0, 1, -1, 1, 0])
    crossed = flights.cross([left, right])
    assert crossed[[4, 5]].tolist() == [-1, -1]
    assert len(np.unique(crossed[:4])) == 4
    assert crossed[6] == crossed[2]


def test_flight_numbers_of_two_carriers_are_two_flights() -> None:
    source = tables()
    data = flights.build(source)
    place = data.fields.index("flight")
    assert data.sizes[place] == 1 + 3 * 3


def test_numbers_are_standardised_on_training_rows_and_missing_is_the_mean() -> None:
    columns = np.array([[1.0, 10.0], [3.0, np.nan], [5.0, 30.0], [100.0, np.nan]])
    scaled = flights.standardise(columns, train=np.array([0, 1, 2]))
    np.testing.assert_allclose(scaled[:3].mean(axis=0), 0.0, atol=1e-6)
    assert scaled[1, 1] == scaled[3, 1] == 0.0
    assert scaled[3, 0] == pytest.approx((100 - 3) / np.sqrt(8 / 3))


def test_split_is_seeded_disjoint_and_complete() -> None:
    train, validation, test = flights.split(327_346)
    assert (len(train), len(validation), len(test)) == (261_876, 32_735, 32_735)
    assert np.array_equal(np.sort(np.concatenate([train, validation, test])), np.arange(327_346))
    np.testing.assert_array_equal(flights.split(327_346)[2], test)
    assert not np.array_equal(flights.split(327_346, seed=8)[2], test)


def test_the_data_set_has_the_types_and_ranges_that_the_model_wants() -> None:
    data = flights.build(tables())
    assert len(data.fields) == len(data.sizes) == 24
    for part in (data.train, data.validation, data.test):
        assert part.ids.dtype == np.int64
        assert part.dense.dtype == part.label.dtype == np.float32
        assert part.ids.shape[1] == 24
        assert part.dense.shape[1] == 10
        assert part.ids.min() >= 0
        assert np.all(part.ids.max(axis=0) < data.sizes)
        assert np.isfinite(part.dense).all()
    seen = data.train.ids.max(axis=0) + 1
    assert seen.tolist() == list(data.sizes)


def test_batches_hold_every_training_row_once_in_a_seeded_order() -> None:
    data = flights.build(tables())
    batches = list(data.train_batches(16, seed=3))
    assert {len(batch.label) for batch in batches[:-1]} == {16}
    drawn = np.concatenate([batch.dense for batch in batches])
    assert not np.array_equal(drawn, data.train.dense)
    order = np.lexsort(drawn.T)
    np.testing.assert_array_equal(drawn[order], data.train.dense[np.lexsort(data.train.dense.T)])
    again = np.concatenate([batch.dense for batch in data.train_batches(16, seed=3)])
    np.testing.assert_array_equal(again, drawn)


def test_damaged_numbers_are_not_taken_for_missing() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        flights.numbers(["1", "abc"])
