import base64
import io

import numpy as np
import pytest
from PIL import Image

from stda import BadInput, show
from stda.show import figures

ALT = "A plain figure that is only here to be tested."


@pytest.fixture
def displayed(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata=None, raw=False: seen.append((data, metadata)))
    return seen


def pixels(bundle):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).convert("RGB"))


@pytest.mark.parametrize("alt", ["", "   ", "too short", None])
def test_alt_text_is_required(displayed, alt):
    fig, _ = show.figure()
    with pytest.raises(ValueError, match="alt text of at least 20"):
        show.show(fig, alt=alt)
    assert displayed == []


def test_show_keeps_alt_in_metadata_and_plain_text(displayed):
    fig, axes = show.figure(1, 2)
    axes[0, 1].plot([1, 2], [3, 4])
    show.show(fig, alt="  A line that\n rises from 3 to 4. ", caption="x < y")
    (image, metadata), (caption, _) = displayed
    assert metadata == {"image/png": {"alt": "A line that rises from 3 to 4."}}
    assert image["text/plain"] == "Figure: A line that rises from 3 to 4."
    assert pixels(image).shape[1] == figures.WIDTH * figures.DPI
    assert caption["text/html"] == '<p class="stda-caption">x &lt; y</p>'


def test_show_closes_pyplot_figures(displayed):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    fig, _ = pyplot.subplots()
    show.show(fig, alt=ALT)
    assert pyplot.get_fignums() == []


def test_the_same_figure_gives_the_same_bytes():
    def draw():
        fig, axes = show.figure()
        axes[0, 0].plot([1, 3, 2])
        return figures.png(fig)

    assert draw() == draw()


def test_style_stays_in_our_figures():
    import matplotlib

    before = dict(matplotlib.rcParams)
    show.figure()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("zoom", [1, 3])
def test_grid_shows_every_pixel_exactly(displayed, zoom):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    show.grid(images, alt=ALT, columns=3, zoom=zoom)
    seen = pixels(displayed[0][0])
    step = 8 * zoom + 6
    for i, image in enumerate(images):
        y, x = (i // 3) * step, (i % 3) * step
        np.testing.assert_array_equal(
            seen[y : y + 8 * zoom, x : x + 8 * zoom], np.kron(image, np.ones((zoom, zoom, 1)))
        )


def test_grid_enlarges_small_images_within_the_report():
    images = np.zeros((24, 32, 32, 3), dtype=np.uint8)
    width = figures.mosaic(images, row_labels=["dermatofibroma", "NV", "MEL"], columns=8).get_figwidth() * figures.DPI
    assert 8 * 64 < width <= figures.WIDTH * figures.DPI
    assert figures.mosaic(np.zeros((2, 224, 224, 3), dtype=np.uint8)).get_figwidth() * figures.DPI == 2 * 230


def test_long_titles_widen_the_cells():
    images = np.zeros((4, 16, 16, 3), dtype=np.uint8)
    words = ["a title that is much longer than its image"] * 4
    fig = figures.mosaic(images, titles=words, columns=2, zoom=1)
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert not any(boxes[i].overlaps(boxes[i + 1]) for i in range(3))
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.y1 <= fig.bbox.height for box in boxes)


def test_grid_refuses_what_is_no_image_set():
    with pytest.raises(BadInput, match="uint8 images"):
        figures.mosaic(np.zeros((2, 8, 8, 3)))
    with pytest.raises(BadInput, match="titles has 3 entries"):
        figures.mosaic(np.zeros((4, 8, 8, 3), dtype=np.uint8), titles=["a", "b", "c"], columns=2)


def test_words_are_broken_to_a_width_and_nothing_is_lost():
    text = "squamous cell carcinoma\nwgan-filtered_0.5/dermatofibroma"
    for width in (50, 80, 120, 1000):
        lines = figures.wrapped(text, width).split("\n")
        assert max(map(figures.text_width, lines)) <= width
        bare = "".join(lines).replace("-", "").replace(" ", "")
        assert bare == text.replace("-", "").replace(" ", "").replace("\n", "")
    assert figures.wrapped(text, 1000) == text
    assert figures.wrapped("squamous cell carcinoma", 80) == "squamous\ncell\ncarcinoma"


def lines_of(masks, **how):
    """The outline of each mask in pixels of its image, from the drawn figure."""
    pictures = np.full((*masks.shape, 3), 90, np.uint8)
    fig = figures.mosaic(pictures, masks=masks, **how)
    return fig, [c.get_paths() for c in fig.axes[0].collections]


@pytest.mark.parametrize("zoom", [1, 4])
def test_outlines_lie_on_the_edge_of_the_mask(zoom):
    mask = np.zeros((1, 12, 12), np.uint8)
    mask[0, 3:7, 2:11] = 255
    _, (paths,) = lines_of(mask, columns=1, zoom=zoom)
    points = np.concatenate([path.vertices for path in paths]) / zoom
    np.testing.assert_allclose([points.min(0), points.max(0)], [[2, 3], [11, 7]])
    straight = (points[:, 1] == 3) & (points[:, 0] > 2.5) & (points[:, 0] < 10.5)
    assert straight.sum() >= 6  # along the upper edge, not across the lesion


def test_a_lesion_that_leaves_the_picture_is_closed_at_its_border_and_an_empty_mask_has_no_outline():
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[0] = 255
    masks[2, :, 4:] = 255
    _, found = lines_of(masks, columns=3, zoom=2)
    assert len(found) == 2
    whole, half = (np.concatenate([path.vertices for path in paths]) for paths in found)
    np.testing.assert_allclose([whole.min(0), whole.max(0)], [[0, 0], [16, 16]])
    np.testing.assert_allclose([half.min(0), half.max(0)], [[2 * 22 + 8, 0], [2 * 22 + 16, 16]])


def test_outlines_show_on_dark_and_on_white():
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[:, 4:12, 4:12] = 255
    pictures = np.stack([np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)])
    fig = figures.mosaic(pictures, masks=masks, columns=2, zoom=4)
    seen = np.asarray(Image.open(io.BytesIO(figures.png(fig))).convert("L")).astype(int)
    dark, white = seen[16:24, :64], seen[16:24, 70:134]
    assert dark.max() > 150
    assert white.min() < 100
