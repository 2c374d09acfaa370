import hashlib
import warnings

import numpy as np
import pytest

from stda import BadInput, data
from stda.data import artefacts, phantom

RNG = np.random.default_rng(0)
SKIN = RNG.integers(150, 200, (6, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pictures():
    return phantom.render(phantom.describe(64, 2).iloc[:12].assign(hair=0, ruler=0, vignette=0), size=32)


def test_the_phantom_s_pictures_are_those_of_before_the_layers_were_shared():
    # computed with the commit before, which drew hair, ruler and rim inside one function
    table = phantom.describe(64, 11).assign(hair=1, ruler=1, vignette=1).iloc[:8]
    digest = hashlib.sha256(phantom.render(table, size=48).tobytes()).hexdigest()
    assert digest == "6f2a3a0e2b12ea508afbdb8367c86440132e6260a09f86b921b61916f0dfaa5c"


@pytest.mark.parametrize("kind", data.INSERTED)
def test_a_picture_s_drawing_depends_on_its_row_and_seed_only(kind):
    drawn = data.insert(SKIN, kind, seed=3)
    assert drawn.dtype == np.uint8
    assert drawn.shape == SKIN.shape
    assert (data.insert(SKIN[:2], kind, seed=3) == drawn[:2]).all()
    assert (data.insert(SKIN, kind, seed=4) != drawn).any()
    cover = (drawn != SKIN).any(axis=-1)
    assert cover.any(axis=(1, 2)).all()  # every picture got one
    assert not (cover[0] == cover[1]).all()  # and each its own
    assert (drawn <= SKIN).mean() > 0.999  # ink and shadow darken skin


@pytest.mark.parametrize("kind", data.INSERTED)
def test_the_same_scene_is_drawn_at_every_size(kind):
    fine, coarse = (np.full((4, size, size, 3), 200, np.uint8) for size in (128, 32))
    fine, coarse = data.insert(fine, kind, seed=1).astype(float), data.insert(coarse, kind, seed=1).astype(float)
    averaged = fine.reshape(4, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    assert np.abs(averaged - coarse).max() <= 1.01  # two roundings


def test_an_inserted_hair_is_the_phantom_s():
    """Drawn over a plain picture as the phantom draws it, with the same random numbers."""
    from stda.data import phantom_draw
    from stda.study import sub_seed

    drawn = data.insert(np.full((1, 128, 128, 3), 180, np.uint8), "hair", seed=5)[0]
    cover, colour = phantom_draw.hair_layer(128, np.random.default_rng(sub_seed(5, "insert", "hair", 0)))
    expected = 180 * (1 - cover[..., None]) + 255 * colour * cover[..., None]
    assert np.abs(drawn - expected).max() <= 0.51


def test_a_frame_is_black_from_end_to_end_and_at_most_a_tenth_wide():
    drawn = data.insert(np.full((40, 100, 100, 3), 180, np.uint8), "frame", seed=0)
    sides = np.stack([np.rot90(drawn, turns, (1, 2))[:, 0].max(axis=(1, 2)) for turns in range(4)])
    black = sides <= artefacts.BLACK
    assert black.any(axis=0).all()
    assert set(black.sum(axis=0)) == {1, 2, 4}
    assert (drawn[:, 10:-10, 10:-10] == 180).all()


def test_light_is_as_strong_as_the_artefact_and_smooth(pictures):
    for kind in data.INSERTED:
        drawn = data.insert(pictures, kind, seed=2)
        lit = data.uneven_light(pictures, drawn, seed=2)
        one, other = (np.sqrt(np.square(x - pictures.astype(float)).mean(axis=(1, 2, 3))) for x in (drawn, lit))
        assert np.abs(one - other).max() < 1.0
        # it adds no line: skin stays smooth where an artefact draws edges
        ratio = (lit.astype(float) + 1) / (pictures.astype(float) + 1)
        inner = np.abs(np.diff(np.log(ratio), 2, axis=1))[(pictures[:, 1:-1] > 60) & (lit[:, 1:-1] < 255)]
        assert np.quantile(inner, 0.99) < 0.06


def test_nothing_to_match_changes_nothing_and_black_stays_black():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (data.uneven_light(SKIN, SKIN, seed=0) == SKIN).all()
        black = np.zeros((2, 16, 16, 3), np.uint8)
        assert (data.uneven_light(black, black + 9, seed=0) == 0).all()
        for kind in data.INSERTED:
            assert data.insert(SKIN[:0], kind, seed=0).shape == (0, 32, 32, 3)
        assert data.uneven_light(SKIN[:0], SKIN[:0], seed=0).shape == (0, 32, 32, 3)


def test_alterations_hold_every_artefact_its_light_and_the_mirror():
    found = data.alterations(SKIN, seed=7)
    assert list(found) == [*data.INSERTED, *(data.LIGHT + kind for kind in data.INSERTED), "mirrored"]
    assert (found["mirrored"] == SKIN[:, :, ::-1]).all()
    assert (found["hair"] == data.insert(SKIN, "hair", seed=7)).all()


def test_bad_input_is_a_sentence():
    with pytest.raises(BadInput, match="'gel' is not known"):
        data.insert(SKIN, "gel", seed=0)
    with pytest.raises(BadInput, match="square uint8"):
        data.insert(SKIN[:, :20], "hair", seed=0)
    with pytest.raises(BadInput, match="square uint8"):
        data.insert(SKIN.astype(float), "hair", seed=0)
    with pytest.raises(BadInput, match="insert into these"):
        data.uneven_light(SKIN, SKIN[:2], seed=0)
