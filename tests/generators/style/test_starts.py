import numpy as np
import pytest
import torch

from stda import BadInput
from stda.generators.style.starts import start_image

CONTENT = torch.rand(3, 3, 8, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_content_and_grey():
    start = start_image("content", CONTENT, [1, 2, 3])
    assert torch.equal(start, CONTENT)
    assert start.data_ptr() != CONTENT.data_ptr()
    grey = start_image("grey", CONTENT, [1, 2, 3])
    expected = 0.299 * CONTENT[:, 0] + 0.587 * CONTENT[:, 1] + 0.114 * CONTENT[:, 2]
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], expected)


def test_noise_is_each_pictures_own():
    noise = start_image("noise", CONTENT, [5, 6, 5])
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1:2], start_image("noise", CONTENT[1:2], [6]))
    assert -1 <= noise.min() < -0.9 < 0.9 < noise.max() <= 1


def test_file_is_resized():
    picture = np.full((20, 30, 3), 255, np.uint8)
    start = start_image("file", CONTENT, [0, 0, 0], picture=picture)
    torch.testing.assert_close(start, torch.ones_like(CONTENT))


@pytest.mark.parametrize("kind", ["file", "style"])
def test_unknown_starts_are_one_sentence(kind):
    with pytest.raises(BadInput, match="start is"):
        start_image(kind, CONTENT, [0, 0, 0])
