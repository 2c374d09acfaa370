import numpy as np
import torch
from scipy.fft import idctn

from stda.generators.style.canvas import Canvas, cosine_matrix


def test_a_change_is_a_weighted_sum_of_cosines():
    np.testing.assert_allclose(cosine_matrix(7) @ cosine_matrix(7).T, np.eye(7), atol=1e-12)
    start = torch.zeros(2, 3, 6, 8, dtype=torch.float64)
    canvas = Canvas(start, smoothness=0.6)
    coefficients = torch.randn_like(start) * 0.01
    expected = idctn(coefficients.numpy() * canvas.weights.numpy(), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(canvas.draw(coefficients.flatten(1), [0, 1]), expected, atol=1e-12)
    assert canvas.weights.square().mean() == 1
    assert canvas.weights[0, 4] / canvas.weights[0, 2] == 0.5**0.6  # twice the frequency
    np.testing.assert_allclose(Canvas(start, smoothness=0.0).weights, 1)


def test_octaves_double_in_frequency():
    octaves = Canvas(torch.zeros(1, 3, 16, 16), smoothness=0.6).octaves().view(3, 16, 16)
    assert torch.equal(octaves[0], octaves[2])
    assert octaves[0, 0].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]


def test_pictures_are_clamped_and_kept_outside_the_mask():
    start, keep = torch.rand(2, 2, 3, 8, 8) * 2 - 1
    mask = torch.rand(2, 1, 8, 8) > 0.5
    canvas = Canvas(start, smoothness=0.6, mask=mask, keep=keep)
    x = canvas.draw(torch.randn(1, 3 * 64), [1])
    outside = ~mask[1:].expand_as(x)
    assert torch.equal(x[outside], keep[1:][outside])
    assert not torch.isclose(x[~outside], keep[1:][~outside]).all()
    assert x.abs().max() == 1


def test_resized():
    start = torch.rand(1, 3, 6, 8) * 2 - 1
    mask = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
    mask[..., :3, :4] = True
    small = Canvas(start, smoothness=0.6, mask=mask).resized((3, 4))
    torch.testing.assert_close(small.start, torch.nn.functional.avg_pool2d(start, 2))
    assert small.mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    # a change of any size is added to the start, not to what is kept
    moved = Canvas(start, smoothness=0.6, mask=mask).resized((6, 8), torch.full((1, 3, 3, 4), 0.25))
    torch.testing.assert_close(moved.start, start + 0.25)
    assert torch.equal(moved.keep, start)
