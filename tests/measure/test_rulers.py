import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from stda import BadInput
from stda.images import ImageSet
from stda.measure.fidelity import COPIES_ROW, REAL_ROW, halves, kid
from stda.measure.rulers import PLAIN, growth_table, ruler_table, spoil


def real_images(n=160, size=16):
    rng = np.random.default_rng(0)
    images = 128 + 100 * gaussian_filter(rng.normal(size=(n, size, size, 3)), (0, 1, 1, 0))
    labels = np.array((["a"] * 5 + ["b"] * 3 + ["c"] * 2) * (n // 10))
    images[labels == "b"] += [50, 0, 0]
    table = pd.DataFrame(
        {"image_id": [f"i{i}" for i in range(n)], "label": labels, "group": [f"g{i // 2}" for i in range(n)]}
    )
    return ImageSet(images.clip(0, 255).astype(np.uint8), table)


def encode(images):
    """Mean colour and roughness: three and one numbers."""
    x = images.astype(np.float32)
    return np.column_stack([x.mean((1, 2)), 3 * np.abs(np.diff(x, axis=1)).mean((1, 2, 3))])


def measured(images, **options):
    pixels = spoil(images.images, seed=1)
    features = {name: encode(x) for name, x in pixels.items()}
    return ruler_table(images, pixels, features, seed=0, **options)


def test_every_planted_fault_is_found_by_the_measures_made_for_it():
    table = measured(real_images())
    assert list(table["set"].unique()) == [
        REAL_ROW, COPIES_ROW, "blurred", "noised", "without b (common)", "without c (rarest)", "collapsed",
    ]  # fmt: skip
    worse = table.pivot_table(index="set", columns="measure", values="worse")
    assert (worse.loc[REAL_ROW] == 0).all()
    assert (worse.loc[["blurred", "noised"], ["KID", "FID", "SWD finest"]] > 2).all(axis=None)
    assert (worse.loc["collapsed", ["recall", "MS-SSIM"]] > 5).all()
    assert (worse.loc[COPIES_ROW, ["FID", "coverage"]] < 0).all()
    assert worse.loc["without b (common)", "KID"] > 3
    assert (table.groupby("set")["n"].nunique() == 1).all()
    pd.testing.assert_frame_equal(table, measured(real_images()))


def test_spread_and_value_are_those_of_the_real_halves():
    table = measured(real_images(), repeats=3)
    real = table[table["set"] == REAL_ROW]
    assert (real["value"] == real["real"]).all()
    blurred = table[(table["set"] == "blurred") & (table["measure"] == "recall")].iloc[0]
    assert blurred["worse"] == pytest.approx((blurred["real"] - blurred["value"]) / blurred["spread"])


def test_fid_falls_with_n_and_kid_stays_around_zero_for_equal_distributions():
    features = np.random.default_rng(0).normal(size=(700, 6))
    table = growth_table(features, groups=np.arange(700), seed=0, repeats=20).set_index(["measure", "n"])
    assert list(table.loc["FID"].index) == [20, 40, 80, 160, 320]
    assert table.loc["FID", "mean"].is_monotonic_decreasing
    assert (table.loc["FID", "low"] > 0).all()
    kid = table.loc["KID"]
    assert ((kid["low"] < 0) & (kid["high"] > 0)).all()


def test_several_images_of_a_lesion_do_not_pull_kid():
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 4)), 4, axis=0) + 0.05 * rng.normal(size=(240, 4))
    lesions = np.arange(240) // 4
    means = growth_table(features, groups=lesions, seed=0, repeats=40).query("measure == 'KID'")["mean"]
    assert list(growth_table(features[:40], groups=lesions[:40], seed=0)["n"]) == [5, 5]  # ten lesions, two halves
    cuts = [halves(features, lesions, np.random.default_rng(r)) for r in range(40)]
    pulled = np.mean([kid(x, y, subsets=0)["kid"] for x, y in cuts])
    assert means.abs().max() < 0.1 < pulled


def test_spoilt_images_are_what_they_say():
    images = real_images(20).images
    made = spoil(images, seed=0)
    assert made[PLAIN] is images
    assert all(x.dtype == np.uint8 and x.shape == images.shape for x in made.values())
    roughness = {name: np.abs(np.diff(x.astype(float), axis=1)).mean() for name, x in made.items()}
    assert roughness["blurred"] < roughness[PLAIN] < roughness["noised"]
    grey = np.full((2, 64, 64, 3), 128, np.uint8)
    assert spoil(grey, seed=0)["noised"].std() == pytest.approx(16, rel=0.05)
    assert (spoil(grey, seed=0)["blurred"] == 128).all()


def test_impossible_input_is_a_sentence():
    images = real_images(20)
    with pytest.raises(BadInput, match="at least two classes"):
        measured(ImageSet(images.images, images.table.assign(label="a")))
    with pytest.raises(BadInput, match="use more images"):
        measured(real_images(10))
    with pytest.raises(BadInput, match="FID needs two"):
        growth_table(np.ones((30, 2)), groups=np.arange(30) // 15, seed=0)
