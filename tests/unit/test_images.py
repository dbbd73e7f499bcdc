from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from rankc.data import Source, open_source
from rankc.data.images import SUFFIXES, Frame
from rankc.errors import DataError, MachineError, RecipeError
from rankc.recipe import DataSpec, Images
from rankc.recipe_load import load_recipe
from rankrt.session import TensorSpec

Array = NDArray[Any]

RAW = Images((0.0,), (1.0,))
NCHW = TensorSpec("x", "float32", ("batch", 3, 8, 8))
NHWC = TensorSpec("x", "float32", ("batch", 8, 8, 3))
GREY = TensorSpec("x", "float32", ("batch", 1, 8, 8))


def pixels(seed: int = 0, height: int = 8, width: int = 8, channels: int = 3) -> Array:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def put(path: Path, array: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(array).save(path, **options)
    return path


def opened(
    folder: Path, spec: TensorSpec = NCHW, image: Images | None = RAW, **options: Any
) -> Source:
    return open_source(DataSpec(folder.name, image=image, **options), folder.parent, [spec])


def read(source: Source) -> Array:
    return np.concatenate([batch.feeds["x"] for batch in source.batches()])


def labels(source: Source) -> list[int]:
    found = [batch.labels for batch in source.batches()]
    return [int(label) for part in found if part is not None for label in part]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of the model's size, in three classes; one sub-folder is empty."""
    root = tmp_path / "images"
    for k, name in enumerate(["b/2.png", "a/1.bmp", "d/z.png", "b/deep/0.PNG", "a/0.png"]):
        put(root / name, pixels(k))
    put(root / "d" / "a.webp", pixels(5))
    (root / "c").mkdir()
    (root / "b" / "notes.txt").write_text("no image", "utf-8")
    (root / "a" / "._0.png").write_bytes(b"what other systems leave behind")
    return root


ORDER = [4, 1, 0, 3, 5, 2]  # a/0, a/1, b/2, b/deep/0, d/a, d/z


def test_images_of_the_models_size_are_read_exactly_and_in_order(folder: Path) -> None:
    source = opened(folder, batch_size=4)
    want = np.stack([pixels(k) for k in ORDER]).transpose(0, 3, 1, 2)
    for _ in range(2):
        got = read(source)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)
    assert [batch.rows for batch in source.batches()] == [4, 2]
    assert source.rows == 6
    np.testing.assert_array_equal(read(opened(folder, NHWC)), want.transpose(0, 2, 3, 1))


def test_pixels_become_values_by_channel(folder: Path) -> None:
    options = Images((100.0, 110.0, 120.0), (50.0, 51.0, 52.0))
    want = (np.stack([pixels(k) for k in ORDER]) - [100.0, 110, 120]) / [50.0, 51, 52]
    assert read(opened(folder, NHWC, options)) == pytest.approx(want, rel=1e-6)
    got = read(opened(folder, NCHW, options))
    assert got == pytest.approx(want.transpose(0, 3, 1, 2), rel=1e-6)
    assert read(opened(folder, image=Images((127.0,), (128.0,)))).min() >= -127 / 128


def test_a_model_that_takes_the_pixels_themselves(folder: Path) -> None:
    spec = TensorSpec("x", "uint8", ("batch", 8, 8, 3))
    got = read(opened(folder, spec))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, np.stack([pixels(k) for k in ORDER]))
    with pytest.raises(DataError, match=r"takes the pixels themselves; set image\.mean to 0"):
        opened(folder, spec, Images((0.0,), (255.0,)))


def test_one_channel_is_grey_and_three_are_colours(tmp_path: Path) -> None:
    root = tmp_path / "images"
    put(root / "grey.png", pixels(channels=1))
    got = read(opened(root))
    assert got.shape == (1, 3, 8, 8)
    np.testing.assert_array_equal(got, np.broadcast_to(pixels(channels=1), (1, 3, 8, 8)))
    np.testing.assert_array_equal(read(opened(root, GREY))[0, 0], pixels(channels=1))
    put(root / "grey.png", np.full((8, 8, 3), (255, 0, 0), np.uint8))
    assert np.unique(read(opened(root, GREY))).tolist() == [76.0]  # ITU-R 601: 0.299 of red


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_modes_are_converted(tmp_path: Path, mode: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    file = root / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (8, 8)).save(file)
    assert read(opened(root)).shape == (1, 3, 8, 8)


sides = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(
    width=sides,
    height=sides,
    wide=st.sampled_from([2, 4, 5, 9]),
    high=st.integers(1, 9),
    more=sides,
)
def test_the_centre_is_that_of_the_image_resized_as_a_whole(
    width: int, height: int, wide: int, high: int, more: int
) -> None:
    spec = TensorSpec("x", "float32", ("batch", 3, high, wide))
    # Of middling pixels none is cut off at 0 or 255, so the order of the two axes does not matter.
    image = Image.fromarray(64 + pixels(0, height, width) // 2)
    for resize in (None, max(wide, high) + more - 1):
        frame = Frame.of("here", [spec], Images((0.0,), (1.0,), resize))
        size = frame.resized(width, height)
        assert size[0] >= wide and size[1] >= high
        if resize is not None:
            assert min(size) == resize
        left, top = round((size[0] - wide) / 2), round((size[1] - high) / 2)
        whole = image.resize(size, Image.Resampling.BICUBIC)
        want = np.asarray(whole.crop((left, top, left + wide, top + high)), np.int16)
        assert np.abs(np.asarray(frame.cut(image), np.int16) - want).max() <= 2  # rounding


def test_left_out_resize_covers_the_frame_and_no_more() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3, 20, 10))
    frame = Frame.of("here", [spec], RAW)
    assert frame.resized(100, 100) == (20, 20)
    assert frame.resized(100, 400) == (10, 40)
    assert frame.resized(5, 10) == (10, 20)


def test_a_strip_that_would_be_huge_when_enlarged_is_read(tmp_path: Path) -> None:
    root = tmp_path / "images"
    put(root / "strip.png", np.full((1, 50_000, 3), 7, np.uint8))
    spec = TensorSpec("x", "float32", ("batch", 3, 64, 64))  # whole: 64 x 3.2 million pixels
    assert np.unique(read(opened(root, spec))).tolist() == [7.0]


def test_a_model_of_free_height_and_width_needs_resize(folder: Path) -> None:
    free = TensorSpec("x", "float32", ("batch", 3, "height", None))
    with pytest.raises(DataError, match=r"leaves height and width free; say with image\.resize"):
        opened(folder, free)
    assert read(opened(folder, free, Images((0.0,), (1.0,), 5))).shape == (6, 3, 5, 5)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 99])
def test_a_few_rows_are_spread_over_all_folders(folder: Path, limit: int) -> None:
    source = opened(folder, rows=limit, label="folder")
    assert source.rows == min(limit, 6) == len(read(source))
    if limit == 3:
        assert labels(source) == [0, 1, 3]


def test_the_class_is_the_place_of_the_sub_folder(folder: Path) -> None:
    source = opened(folder, label="folder", batch_size=4)
    assert labels(source) == [0, 0, 1, 1, 3, 3]  # c is empty, and a class all the same
    put(folder / "loose.png", pixels())
    with pytest.raises(DataError, match=r"loose\.png: of no class; with `label: folder`"):
        opened(folder, label="folder")
    assert opened(folder).rows == 7
    with pytest.raises(DataError, match=r"label 'y': images have no columns.*`label: folder`"):
        opened(folder, label="y")


def test_the_digest_is_of_names_contents_and_classes(folder: Path) -> None:
    def digests() -> tuple[str, str]:
        return opened(folder).digest(), opened(folder, label="folder").digest()

    first = digests()
    assert first == digests()
    assert len(set(first)) == 2
    assert {len(digest) for digest in first} == {64}
    (folder / "c").rename(folder / "e")  # the images stay, the class of d becomes another
    second = digests()
    assert (second[0] == first[0], second[1] == first[1]) == (True, False)
    (folder / "a" / "0.png").rename(folder / "b" / "0.png")
    third = digests()
    assert not set(third) & set(second)
    put(folder / "b" / "0.png", pixels(99))
    assert not set(digests()) & set(third)
    assert opened(folder, rows=2).digest() != opened(folder).digest()


def test_large_images_come_in_small_batches(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for k in range(3):
        put(root / f"{k}.png", pixels(k))
    spec = TensorSpec("x", "float32", ("batch", 3, 900, 900))  # 9.7 MB each
    assert [batch.rows for batch in opened(root, spec).batches()] == [1, 1, 1]
    with pytest.raises(DataError, match="takes exactly 2 rows"):
        read(opened(root, TensorSpec("x", "float32", (2, 3, 8, 8)), batch_size=2))
    fixed = TensorSpec("x", "float32", (3, 3, 900, 900))
    assert [batch.rows for batch in opened(root, fixed, batch_size=3).batches()] == [3]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([NCHW, TensorSpec("y", "float32", ("batch", 2))], "a model of one input"),
        ([TensorSpec("x", "float32", ("batch", 10))], r"x float32 \(batch, 10\) takes no images"),
        ([TensorSpec("x", "bool", ("batch", 3, 8, 8))], "takes no images"),
        ([TensorSpec("x", "float32", ("batch", 4, 8, 8))], "of 1 or 3 channels"),
        ([TensorSpec("x", "float32", ("batch", "c", 8, 8))], "takes no images"),
        ([TensorSpec("x", "float32", ("batch", 3, 8, 3))], "takes no images"),
    ],
)
def test_models_that_take_no_images(folder: Path, inputs: list[TensorSpec], says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_source(DataSpec(folder.name, image=RAW), folder.parent, inputs)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Images((0.0, 0.0), (1.0,)), r"image\.mean has 2 numbers; give one, or .* the 3 channels"),
        (Images((0.0,), (1.0,) * 4), r"image\.scale has 4 numbers"),
        (Images((0.0,), (1.0,), 7), r"resize is 7, too small to cut 8 x 8 pixels out"),
    ],
)
def test_options_that_do_not_fit_the_model(folder: Path, image: Images, says: str) -> None:
    with pytest.raises(DataError, match=says):
        opened(folder, image=image)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large; its pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot identify"),
        (b"GIF89a" + bytes(50), "cannot identify"),
        (png_of(10_000, 10_000), "could be decompression bomb"),  # Pillow would only warn
        (png_of(60_000, 60_000), "could be decompression bomb"),
        (png_of(100, 100), "truncated"),
    ],
)
def test_what_cannot_be_read_is_named(folder: Path, content: bytes, says: str) -> None:
    (folder / "b" / "1.png").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"1\.png: cannot be read as an image: .*{says}.*; mend it"
    ):
        read(opened(folder))


def test_sixteen_bits_a_channel_are_not_cut_off(tmp_path: Path) -> None:
    root = tmp_path / "images"
    put(root / "deep.png", np.full((8, 8), 40_000, np.uint16))
    with pytest.raises(DataError, match=r"deep\.png: .*more than 8 bits a channel"):
        read(opened(root))


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from(sorted(SUFFIXES)),
    cut=st.none() | st.floats(0, 0.99),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=4),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of metadata that makes no sense
def test_spoilt_files_end_in_a_data_error_or_in_pixels(
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    cut: float | None,
    flips: list[tuple[int, int]],
) -> None:
    root = tmp_path_factory.mktemp("spoilt")
    file = put(root / f"a{suffix}", pixels())
    whole = bytearray(file.read_bytes())
    for at, mask in flips:
        whole[at % len(whole)] ^= mask
    file.write_bytes(whole if cut is None else whole[: int(cut * len(whole))])
    try:
        got = read(opened(root))
    except DataError as error:
        assert str(file) in str(error)
        return
    assert got.shape == (1, 3, 8, 8) and np.isfinite(got).all()


def test_folders_without_images(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no images in it or below; read are \.jpg, \.jpeg, \.png"):
        opened(tmp_path / "empty")
    with pytest.raises(DataError, match=r"none: there is no such folder; put your images there"):
        opened(tmp_path / "none")
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 3, 8, 8)))
    with pytest.raises(DataError, match=r"a\.npz: no folder of images"):
        opened(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"images: holds images; say .*`image: \{mean: 0, scale"):
        opened(folder, image=None)


def test_a_recipe_whose_images_are_missing_says_how_to_name_a_folder(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "recipes" / "efficientnet-lowrank.yaml"
    inputs = [TensorSpec("image", "float32", ("batch", 3, 224, 224))]
    recipe = load_recipe(path, [f"data.calibration.path={json.dumps(str(tmp_path / 'photos'))}"])
    with pytest.raises(DataError, match=r"photos: .*your images.*--set data\.calibration\.path="):
        open_source(recipe.data.calibration, recipe.folder, inputs)
    put(tmp_path / "photos" / "a.png", pixels(height=300, width=400))
    source = open_source(recipe.data.calibration, recipe.folder, inputs)
    assert source.rows == 1


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
@pytest.mark.parametrize(
    ("link", "target", "says"),
    [
        ("b/out.png", "../../secret.png", r"out\.png: a link that leaves the folder"),
        ("b/none.png", "nowhere.png", r"none\.png: a broken link"),
        ("b/loop", "..", r"loop: a link to a folder, which is not followed"),
    ],
)
def test_links(folder: Path, link: str, target: str, says: str) -> None:
    put(folder.parent / "secret.png", pixels())
    (folder / link).symlink_to(target)
    with pytest.raises(DataError, match=says):
        opened(folder)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_within_the_folder_and_to_the_folder_are_followed(folder: Path) -> None:
    (folder / "a" / "9.png").symlink_to("../b/2.png")
    assert opened(folder).rows == 7
    (folder.parent / "named").symlink_to(folder)
    assert opened(folder.parent / "named").rows == 7
    os.mkfifo(folder / "a" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: a broken link or a device"):
        opened(folder)


def test_without_pillow_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MachineError, match=r"needs Pillow: pip install 'rankc\[images\]'"):
        opened(folder)


@pytest.mark.parametrize(
    "written", ["mean: 0, scale: 255", "mean: [0, 0.0, 0], scale: [1, 2, 3.5]"]
)
def test_a_recipe_gives_one_number_or_one_a_channel(
    tmp_path: Path, written: str, recipe_of: Callable[[str], Path]
) -> None:
    image = load_recipe(recipe_of(written)).data.calibration.image
    assert image in (Images((0.0,), (255.0,)), Images((0.0, 0.0, 0.0), (1.0, 2.0, 3.5)))


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("mean: 0", r"r\.yaml:3.*image\.scale: required"),
        ("mean: 0, scale: 0", "scale not 0"),
        ("mean: .nan, scale: 1", r"image\.mean: nan"),
        ("mean: x, scale: 1", r'image\.mean: expected a number, got the text "x"'),
        ("mean: [], scale: 1", r"image\.mean: must have at least 1"),
        ("mean: 0, scale: 1, resize: 0", r"image\.resize: must be greater"),
        ("mean: 0, scale: 1, size: 5", r"image\.size: unknown option"),
    ],
)
def test_a_recipe_with_wrong_options(
    written: str, says: str, recipe_of: Callable[[str], Path]
) -> None:
    with pytest.raises(RecipeError, match=says):
        load_recipe(recipe_of(written))


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[[str], Path]:
    def write(image: str) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(
            "name: a\nmodel: m.onnx\n"
            f"data: {{calibration: {{path: images, image: {{{image}}}}}}}\n"
            "passes: [lowrank]\n",
            "utf-8",
        )
        return path

    return write


@pytest.mark.parametrize(("mean", "scale"), [(np.nan, 1.0), (0.0, np.inf), (0.0, 0.0)])
def test_options_made_in_python_are_checked_too(mean: float, scale: float) -> None:
    with pytest.raises(ValueError, match="mean and scale must be finite, and scale not 0"):
        Images((mean,), (scale,))


def test_arrays_of_bytes_keep_their_values(tmp_path: Path) -> None:
    images = np.stack([pixels(k) for k in range(5)])
    np.savez_compressed(tmp_path / "rows.npz", x=images, y=np.arange(5, dtype=np.uint8))
    source = open_source(DataSpec("rows.npz", 2, label="y"), tmp_path, [NHWC])
    batches = list(source.batches())
    assert [(batch.rows, batch.feeds["x"].dtype.name) for batch in batches] == [
        (2, "float32"),
        (2, "float32"),
        (1, "float32"),
    ]
    np.testing.assert_array_equal(read(source), images)
    assert labels(source) == [0, 1, 2, 3, 4]
