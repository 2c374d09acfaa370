import numpy as np
import pytest

from stda.measure.distances import blocks, distance_chunks, squared_distances


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_are_the_distances_of_differences_far_from_the_origin(chunk):
    rng = np.random.default_rng(0)
    x, y = rng.normal(5000, 1, (30, 4)).astype(np.float32), rng.normal(5000, 1, (2100, 4)).astype(np.float32)
    expected = ((x.astype(float)[:, None] - y.astype(float)[None]) ** 2).sum(2)
    found = np.full((30, 2100), np.nan)
    for rows, distances in distance_chunks(x, y, chunk=chunk):
        assert len(distances) <= chunk
        found[rows] = distances
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_equal_rows_have_no_distance_and_nothing_has_no_chunk():
    x = np.full((4, 3), 0.1)
    assert (squared_distances(x, x) == 0).all()
    assert list(distance_chunks(x[:0], x)) == []
    assert [s.stop for s in blocks(5, 2)] == [2, 4, 5]
