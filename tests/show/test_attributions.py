import base64
import itertools

import numpy as np
import pytest

from stda import BadInput, show
from stda.show import attributions, figures

ALT = "Attribution maps that are only here to be tested."
LONG = ["squamous cell carcinoma", "benign keratosis-like lesion", "dermatofibroma"]


@pytest.fixture
def displayed(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata=None, raw=False: seen.append((data, metadata)))
    return seen


def pictures(n, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def maps(n, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size, size))


def masks(n, size=8):
    made = np.zeros((n, size, size), np.uint8)
    made[:, size // 4 : size // 2, size // 4 : size // 2] = 255
    return made


def cells(fig):
    """The pictures of a figure from top left to bottom right, without the colour bar."""
    return [np.asarray(image.get_array(), int) for image in fig.axes[0].images if image.get_array().shape[0] > 1]


def words(fig):
    return [text.get_text() for text in fig.axes[0].texts]


def test_colours_are_red_for_blue_against_white_for_zero_and_symmetric_per_map():
    values = np.zeros((2, 4, 4))
    values[0, 0, 0], values[0, 0, 1], values[1, 0, 0] = 1.0, -1.0, 1e-6
    coloured = attributions.coloured(values)
    red, blue, faint, zero = coloured.astype(int)[[0, 0, 1, 0], [0, 0, 0, 3], [0, 1, 0, 3]]
    assert red[0] > red[2] + 60
    assert blue[2] > blue[0] + 60
    np.testing.assert_array_equal(red, faint)  # its own range
    assert zero.min() > 240
    np.testing.assert_array_equal(coloured, attributions.coloured(values[:, None].repeat(3, axis=1)))  # channels summed
    assert attributions.coloured(np.zeros((1, 2, 2))).min() > 240


def test_a_map_with_a_single_relevant_pixel_is_not_white():
    values = np.zeros((1, 32, 32))
    values[0, 5, 7] = -1e-3
    seen = attributions.coloured(values).astype(int)[0]
    assert seen[5, 7, 2] > seen[5, 7, 0] + 60
    assert np.delete(seen.reshape(-1, 3), 5 * 32 + 7, axis=0).min() > 240


def test_colours_of_maps_may_share_a_scale():
    values = np.stack([np.full((2, 2), 1.0), np.full((2, 2), 2.0)])
    alone, together = attributions.coloured(values), attributions.coloured(values, together=True)
    assert (alone[0] == alone[1]).all()
    assert not (together[0] == together[1]).all()


def test_methods_are_rows_and_images_columns(displayed):
    images, first, second = pictures(3), maps(3), maps(3, seed=1)
    made = {"gradient": first, "deep Taylor, bounded": second[:, None]}
    fig = attributions.attribution_grid_figure(images, made, titles=["a", "b", "c"])
    seen = cells(fig)
    assert len(seen) == 9
    zoom = seen[0].shape[0] // 8
    assert zoom > 1
    for i in range(3):
        np.testing.assert_array_equal(seen[i], np.kron(images[i], np.ones((zoom, zoom, 1))))
        np.testing.assert_array_equal(seen[3 + i][::zoom, ::zoom], attributions.coloured(first.astype(np.float32))[i])
        np.testing.assert_array_equal(seen[6 + i][::zoom, ::zoom], attributions.coloured(second.astype(np.float32))[i])
    at = [(text.get_text(), text.get_position()[1]) for text in fig.axes[0].texts]
    heights = [dict(at)[name] for name in ("a", "image", "gradient")]
    assert heights == sorted(heights)
    assert {"against the class", "for the class"} < set(words(fig))
    show.attribution_grid(images, made, alt=ALT)
    assert displayed[0][1]["image/png"]["alt"] == ALT
    with pytest.raises(ValueError, match="alt text"):
        show.attribution_grid(images, made, alt="")


@pytest.mark.parametrize(("n", "size", "n_methods"), [(8, 32, 24), (6, 128, 3), (8, 128, 3), (2, 224, 2), (1, 32, 1)])
def test_a_grid_fits_the_page_and_words_do_not_run_into_each_other(n, size, n_methods):
    made = {f"method with a long name {i}": maps(n, size, i) for i in range(n_methods)}
    titles = [LONG[i % 3] for i in range(n)]
    fig = attributions.attribution_grid_figure(pictures(n, size), made, titles=titles, masks=masks(n, size))
    assert fig.get_figwidth() <= figures.WIDTH + 0.05
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.width and box.y1 <= fig.bbox.height for box in boxes)
    assert len(fig.axes[0].collections) == n * (n_methods + 1)  # an outline over every picture and map


def test_large_maps_are_averaged_before_they_are_coloured():
    size = 224
    checkers = np.indices((size, size)).sum(axis=0)[None] % 2 * 2.0 - 1.0  # plus and minus one cancel
    checkers[:, :4, :4] = 1.0
    fig = attributions.attribution_grid_figure(pictures(1, size), {"gradient": checkers})
    seen = cells(fig)[1]
    assert len(seen) < size
    assert seen[len(seen) // 2 :].min() > 230
    assert seen[0, 0, 0] > seen[0, 0, 2] + 60


def test_a_method_may_have_one_range_for_all_its_images():
    values = np.stack([np.full((8, 8), 1.0), np.full((8, 8), 3.0)])
    fig = attributions.attribution_grid_figure(pictures(2), {"gradient": values}, together=True)
    weak, strong = cells(fig)[2:]
    assert weak[0, 0, 1] > strong[0, 0, 1] + 60
    assert any(text.startswith("Each method has its own") for text in words(fig))


def test_what_does_not_fit_is_refused():
    grid = attributions.attribution_grid_figure
    with pytest.raises(BadInput, match="'gradient' have shape"):
        grid(pictures(3), {"gradient": maps(2)})
    with pytest.raises(BadInput, match="not finite"):
        grid(pictures(1), {"gradient": np.full((1, 8, 8), np.nan)})
    for wrong in (masks(2), masks(3).astype(float), masks(3) // 255, masks(3, 16)):
        with pytest.raises(BadInput, match="Masks of these images are uint8"):
            grid(pictures(3), {"gradient": maps(3)}, masks=wrong)
    with pytest.raises(BadInput, match="uint8 images"):
        grid(pictures(3).astype(float), {"gradient": maps(3)})
    with pytest.raises(BadInput, match="titles has 2 entries"):
        grid(pictures(3), {"gradient": maps(3)}, titles=["a", "b"])


GALLERY = {
    "labels": ["MEL", "MEL", "MEL", "NV", "NV", "MEL"],
    "predicted": ["MEL", "NV", "MEL", "NV", "NV", "MEL"],
    "confidence": [0.5, 0.9, 0.8, 0.6, 0.7, 0.6],
}


def test_a_gallery_has_the_surest_hits_and_errors_of_every_class():
    images = pictures(6)
    fig = attributions.gallery_figure(images, **GALLERY, n=2)
    assert words(fig)[:1] == ["✓ 0.80"]
    assert {"✗ NV 0.90", "✓ 0.60", "✓ 0.70", "none"} <= set(words(fig))
    assert "✓ 0.50" not in words(fig)  # the third hit
    assert {"MEL\n3 of 4 right", "NV\n2 of 2 right"} < set(words(fig))
    seen = cells(fig)
    assert len(seen) == 8
    step = len(seen[0]) // 8
    for cell, row in zip(seen, [2, 5, 1, None, 4, 3, None, None], strict=True):
        expected = np.full_like(images[0], 255) if row is None else images[row]
        np.testing.assert_array_equal(cell[step // 2 :: step, step // 2 :: step], expected)
    only = attributions.gallery_figure(images, **GALLERY, n=2, classes=["NV"])
    assert len(cells(only)) == 4


@pytest.mark.parametrize("size", [32, 128])
def test_a_gallery_sets_the_map_beside_its_picture_and_fits_the_page(size):
    n = 12
    labels, said = [LONG[i % 3] for i in range(n)], [LONG[i // 2 % 3] for i in range(n)]
    made = maps(n, size)
    fig = attributions.gallery_figure(
        pictures(n, size), labels, said, np.linspace(0.3, 1, n), maps=made, masks=masks(n, size), n=3
    )
    assert fig.get_figwidth() <= figures.WIDTH + 0.05
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    height, width = cells(fig)[0].shape[:2]
    assert width == 2 * height + 2
    assert height > 40
    paths = fig.axes[0].collections[0].get_paths()
    xs = np.concatenate([path.vertices for path in paths])[:, 0]
    assert xs.max() - xs.min() > height  # the outline is on the picture and on the map


def test_a_gallery_refuses_what_does_not_fit():
    for wrong in ({"labels": ["MEL"]}, {"confidence": [np.nan] * 6}, {"n": 0}):
        with pytest.raises(BadInput, match="A gallery needs"):
            attributions.gallery_figure(pictures(6), **GALLERY | wrong)


def test_one_image_through_all_arms_says_what_each_said_and_wraps():
    arms = [f"generator-{i}-balanced" for i in range(30)]
    made = {arm: maps(1, 32, i)[0] for i, arm in enumerate(arms)}
    said = {arm: LONG[i % 3] for i, arm in enumerate(arms)}
    sure = dict.fromkeys(arms, 0.5)
    fig = attributions.through_arms_figure(
        pictures(1, 32)[0], made, said, label=LONG[2], confidence=sure, mask=masks(1, 32)[0]
    )
    assert len(cells(fig)) == 31
    assert fig.get_figwidth() <= figures.WIDTH + 0.05
    titles = [text for text in words(fig) if text.endswith("0.50")]
    assert [("✓" in text) for text in titles] == [i % 3 == 2 for i in range(30)]
    assert all(("✓" in text) != ("✗" in text) for text in titles)
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    rows = {round(text.get_position()[1]) for text in fig.axes[0].texts if text.get_text() in titles}
    assert len(rows) == 5


def test_arms_without_a_prediction_or_of_a_wrong_shape_are_refused():
    image, one = pictures(1)[0], maps(1)[0]
    with pytest.raises(BadInput, match="no prediction of \\['wgan'\\]"):
        attributions.through_arms_figure(image, {"wgan": one}, {}, label="MEL")
    with pytest.raises(BadInput, match="'wgan' have shape"):
        attributions.through_arms_figure(image, {"wgan": one[:4]}, {"wgan": "MEL"}, label="MEL")
    with pytest.raises(BadInput, match="maps of 0 arms"):
        attributions.through_arms_figure(image, {}, {}, label="MEL")


def test_gallery_and_arms_need_alternative_text(displayed):
    with pytest.raises(ValueError, match="alt text"):
        show.gallery(pictures(6), **GALLERY, alt="short")
    with pytest.raises(ValueError, match="alt text"):
        show.through_arms(pictures(1)[0], {"wgan": maps(1)[0]}, {"wgan": "NV"}, label="NV", alt="")
    show.gallery(pictures(6), **GALLERY, maps=maps(6), alt=ALT, caption="hits and errors")
    show.through_arms(pictures(1)[0], {"wgan": maps(1)[0]}, {"wgan": "NV"}, label="NV", alt=ALT)
    assert len(displayed) == 3
    assert len(base64.b64decode(displayed[0][0]["image/png"])) > 1000
