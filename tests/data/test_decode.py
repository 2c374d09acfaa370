import numpy as np
import pytest
from PIL import Image

from stda import BadInput
from stda.data import decode


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for k, (height, width) in enumerate([(40, 60), (60, 40), (50, 50), (41, 60)]):
        path = tmp_path / f"{k}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def test_the_centre_square_is_cut_out(files):
    pictures, failed = decode.decode(files[:1], size=40)
    whole = np.asarray(Image.open(files[0]))
    np.testing.assert_array_equal(pictures[0], whole[:, 10:50])
    assert failed == {}


def test_shrinking_is_antialiased():
    # a one-pixel checkerboard has nothing left below its frequency: grey, not moire
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode.resize(np.repeat(board[None, :, :, None], 3, -1).astype(np.uint8), 16)
    assert np.abs(small[:, 2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_one_resize_for_files_and_arrays(files):
    pictures, _ = decode.decode(files, size=16)
    arrays = [np.asarray(Image.open(path))[None] for path in files]
    np.testing.assert_array_equal(pictures, np.concatenate([decode.resize(array, 16) for array in arrays]))
    same = arrays[2]
    np.testing.assert_array_equal(decode.resize(same, 50), same)


def test_grey_alpha_palette_and_rotated_files_become_upright_rgb(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for mode in ("L", "RGBA", "P", "LA"):
        Image.fromarray(grey).convert(mode).save(tmp_path / f"{mode}.png")
    pictures, failed = decode.decode([tmp_path / f"{mode}.png" for mode in ("L", "RGBA", "P", "LA")], size=16)
    assert not failed
    for picture in pictures:
        np.testing.assert_array_equal(picture, np.repeat(grey[:, :, None], 3, -1))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.fromarray(grey).convert("RGB").save(tmp_path / "turned.png", exif=exif)
    turned = decode.decode_one(tmp_path / "turned.png", 16)
    np.testing.assert_array_equal(turned[:, :, 0], np.rot90(grey, -1))


def test_bad_files_are_reported_not_guessed(files, tmp_path):
    truncated, text, deep = tmp_path / "cut.jpg", tmp_path / "text.jpg", tmp_path / "deep.png"
    Image.open(files[0]).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:400])
    text.write_text("not a picture")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep)
    pictures, failed = decode.decode([files[0], truncated, text, tmp_path / "gone.jpg", files[1], deep], size=8)
    assert sorted(failed) == [1, 2, 3, 5]
    assert failed[3] == "not there"
    assert "8 bits" in failed[5]
    np.testing.assert_array_equal(pictures, decode.decode(files[:2], size=8)[0])


def test_the_number_of_threads_changes_nothing(files, monkeypatch):
    monkeypatch.setenv("STDA_THREADS", "1")
    one, _ = decode.decode(files, size=16)
    monkeypatch.setenv("STDA_THREADS", "4")
    np.testing.assert_array_equal(decode.decode(files, size=16)[0], one)


def test_cache_hits_by_content_and_misses_on_any_change(files, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first, _ = decode.cached(files, size=16, cache_dir=cache)
    decode.cached(files, size=20, cache_dir=cache)
    assert len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode", None)  # a hit does not decode
        again, _ = decode.cached(files, size=16, cache_dir=cache)
    np.testing.assert_array_equal(again, first)
    assert isinstance(again, np.memmap)
    # other bytes under the same name, size and time
    stat = files[0].stat()
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"\0")
    import os

    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert decode.content_key(files, 16) not in {path.name.split("-")[-1] for path in cache.iterdir()}
    assert decode.content_key(files, 16) != decode.content_key(files[::-1], 16)


def test_failures_are_remembered_by_the_cache(files, tmp_path):
    paths = [files[0], tmp_path / "gone.png"]
    for _ in range(2):
        pictures, failed = decode.cached(paths, size=8, cache_dir=tmp_path / "cache")
        assert len(pictures) == 1
        assert failed == {1: "not there"}


def test_a_full_disk_leaves_nothing_half(files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(BadInput, match="No space left on device"):
        decode.cached(files, size=8, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_entry_is_a_sentence(files, tmp_path):
    decode.cached(files, size=8, cache_dir=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / "images.npy").write_bytes(b"junk")
    with pytest.raises(BadInput, match="delete this folder"):
        decode.cached(files, size=8, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_impossible_sizes(size, files):
    with pytest.raises(BadInput, match="image_size"):
        decode.decode(files, size=size)
    with pytest.raises(BadInput, match="image_size"):
        decode.resize(np.zeros((1, 4, 4, 3), np.uint8), size)


def test_the_aspect_is_kept_where_asked(files):
    whole = np.asarray(Image.open(files[0]))  # 60 x 40
    np.testing.assert_array_equal(decode.decode_one(files[0], 40, "keep"), whole)
    shapes = [found.shape for found in decode.decode_each(files, size=20, aspect="keep")]
    assert shapes == [(20, 30, 3), (20, 13, 3), (20, 20, 3), (20, 29, 3)]
    expected = np.asarray(Image.fromarray(whole).resize((30, 20), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(decode.decode_one(files[0], 20, "keep"), expected)
    assert decode.frame((600, 450), 224) == (298, 224)  # the size of ST-DA's published examples
    with pytest.raises(BadInput, match="aspect is 'wide'; it must be one of square, keep"):
        decode.check_aspect("wide")


def test_a_mask_is_cut_and_sized_as_its_picture():
    drawn = np.zeros((30, 40), np.uint8)
    drawn[10:20, 5:30] = 255
    mask = Image.fromarray(drawn).convert("1")
    # every second pixel of the whole frame, of the centre square (columns 5 to 35)
    np.testing.assert_array_equal(decode.resize_mask(mask, 15, "keep", (40, 30)), drawn[1::2, 1::2])
    np.testing.assert_array_equal(decode.resize_mask(mask, 15, "square", (400, 300)), drawn[1::2, 6:36:2])
    for aspect in decode.ASPECTS:  # a square picture is the centre square of the frame
        np.testing.assert_array_equal(decode.resize_mask(mask, 30, aspect, (224, 224)), drawn[:, 5:35])
        with pytest.raises(ValueError, match="has 40 x 30 px, its picture 300 x 200"):
            decode.resize_mask(mask, 15, aspect, (300, 200))
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    np.testing.assert_array_equal(decode.resize_mask(grey, 1, "keep", (4, 1)), [[0, 0, 255, 255]])
