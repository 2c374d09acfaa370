import numpy as np
import pytest
from PIL import Image

from stda import BadInput
from stda.generators.style import colour

RANDOM = np.random.default_rng(0)
RESULT = RANDOM.integers(90, 160, (9, 7, 3), dtype=np.uint8)
CONTENT = RANDOM.integers(100, 150, (9, 7, 3), dtype=np.uint8)


def ycbcr(picture):
    """BT.601, full range, in float64."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    return picture.astype(float) @ matrix.T + np.array([0, 128, 128])


def test_luma_is_the_results_and_chroma_the_contents():
    kept = colour.keep_chroma(RESULT, CONTENT)
    inside = ((kept > 0) & (kept < 255)).all(axis=-1)  # not clipped
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ycbcr(kept)[inside][:, 0], ycbcr(RESULT)[inside][:, 0], atol=2)
    np.testing.assert_allclose(ycbcr(kept)[inside][:, 1:], ycbcr(CONTENT)[inside][:, 1:], atol=2)
    np.testing.assert_allclose(colour.keep_chroma(CONTENT, CONTENT), CONTENT, atol=3)


def test_histogram_is_the_contents():
    matched = colour.match_histogram(RESULT, CONTENT)
    for channel in range(3):
        # brute force: the n-th darkest pixel gets the level of the content's n-th darkest, ties alike
        own, wanted = RESULT[..., channel].ravel(), np.sort(CONTENT[..., channel].ravel()).astype(float)
        expected = np.array([wanted[(own <= level).sum() - 1] for level in own])
        np.testing.assert_allclose(matched[..., channel].ravel(), expected, atol=0)
    assert np.array_equal(colour.match_histogram(CONTENT, CONTENT), CONTENT)
    wide = np.asarray(Image.fromarray(CONTENT).resize((20, 20)))
    assert colour.match_histogram(RESULT, wide).shape == RESULT.shape


def test_mask_keeps_the_content_bit_for_bit():
    mask = RANDOM.integers(0, 2, (9, 7), dtype=np.uint8) * 255
    mixed = colour.apply_mask(RESULT, CONTENT, mask)
    assert np.array_equal(mixed[mask == 0], CONTENT[mask == 0])
    assert np.array_equal(mixed[mask > 0], RESULT[mask > 0])
    with pytest.raises(BadInput, match="give a mask of the picture's size"):
        colour.apply_mask(RESULT, CONTENT, mask[1:])
    with pytest.raises(BadInput, match="must be of one size"):
        colour.keep_chroma(RESULT, CONTENT[1:])
