import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stda import BadInput, explain
from stda.compute import rng
from stda.explain.perturbation import replacement

FILL = (127.5, 127.5, 127.5)


class Bright(nn.Module):
    """Logit 0 is the sum over the picture times a weight per pixel; the others are zero."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        first = (x * self.weight).sum(dim=(1, 2, 3))
        return torch.stack([first, torch.zeros_like(first), torch.zeros_like(first)], dim=1)


@pytest.fixture
def case():
    noise = rng(0)
    images = torch.rand(4, 3, 12, 12, generator=noise) * 2 - 1
    weight = torch.rand(1, 3, 12, 12, generator=noise) * 0.05
    model = Bright(weight)
    return model, images, (images * weight).numpy()


def brute_force(model, image, order, region_size, fill):
    """One image, one region after the other."""
    image, curve = image.clone(), []
    for region in [None, *order]:
        if region is not None:
            columns = -(-image.shape[-1] // region_size)
            top, left = region // columns * region_size, region % columns * region_size
            image[:, top : top + region_size, left : left + region_size] = fill
        with torch.no_grad():
            curve.append(model(image[None]).softmax(dim=1)[0, 0].item())
    return curve


@pytest.mark.parametrize("region_size", [3, 4, 5])
def test_curves_equal_one_region_after_the_other(case, region_size):
    model, images, maps = case
    curves = explain.perturbation_curves(
        model, images, {"exact": maps}, seed=0, region_size=region_size, fill=FILL, target=0, batch_size=7, n_regions=99
    )
    for i in range(len(images)):
        relevance = explain.region_relevance(maps[i : i + 1], region_size)[0].flatten().numpy()
        order = np.argsort(-relevance, kind="stable")
        part = curves[(curves["method"] == "exact") & (curves["image"] == i)].sort_values("regions")
        wanted = brute_force(model, images[i], order, region_size, 0.0)
        np.testing.assert_allclose(part["probability"], wanted, rtol=1e-5)


def test_region_relevance_is_a_mean_also_at_the_edge():
    maps = np.arange(2 * 5 * 5, dtype=float).reshape(1, 2, 5, 5)
    summed = maps.sum(axis=1)[0]
    found = explain.region_relevance(maps, 3)[0].numpy()
    wanted = [[summed[:3, :3].mean(), summed[:3, 3:].mean()], [summed[3:, :3].mean(), summed[3:, 3:].mean()]]
    np.testing.assert_allclose(found, wanted)


def test_the_right_map_beats_random_and_the_wrong_one_loses(case):
    model, images, maps = case
    table = explain.aopc_table(
        explain.perturbation_curves(
            model, images, {"right": maps, "wrong": -maps}, seed=1, region_size=3, fill=FILL, target=0, random_orders=20
        )
    ).set_index("method")
    assert table.loc["right", "gain"] > 0 > table.loc["wrong", "gain"]
    assert table.loc["right", "low"] > 0
    assert table.loc["random", "gain"] == 0
    assert np.isnan(table.loc["random", "low"])


def test_area_by_hand():
    rows = [("m", 0, 0, k, p) for k, p in enumerate((0.9, 0.5, 0.1))]
    rows += [
        ("random", order, 0, k, p)
        for order, ps in enumerate(((0.9, 0.9, 0.6), (0.9, 0.7, 0.6)))
        for k, p in enumerate(ps)
    ]
    curves = pd.DataFrame(rows, columns=["method", "order", "image", "regions", "probability"])
    table = explain.aopc_table(curves.assign(arm="none")).set_index("method")
    assert table.loc["m", "aopc"] == pytest.approx((0 + 0.4 + 0.8) / 3)
    assert table.loc["random", "aopc"] == pytest.approx((0 + 0.1 + 0.3) / 3)
    assert table.loc["m", "gain"] == pytest.approx(0.8 / 3)
    assert list(table["arm"]) == ["none", "none"]
    np.testing.assert_allclose(explain.mean_curves(curves)["random"], [[0.9, 0.8, 0.6]])


def test_seed_decides_random_orders_only(case):
    model, images, maps = case
    settings = {"region_size": 4, "fill": FILL, "target": 0, "random_orders": 2}
    a, b, c = (explain.perturbation_curves(model, images, {"m": maps}, seed=s, **settings) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(a, b)
    assert a.query("method == 'm'")["probability"].equals(c.query("method == 'm'")["probability"])
    assert not a.query("method == 'random'")["probability"].equals(c.query("method == 'random'")["probability"])
    assert a.groupby("method")["order"].nunique().to_dict() == {"m": 1, "random": 2}


def test_replacements():
    images = torch.rand(2, 3, 16, 16, generator=rng(0)) * 2 - 1
    grey = replacement(images, "mean", fill=(0, 127.5, 255), blur=4, noise=rng(0))
    torch.testing.assert_close(grey[1, :, 3, 5], torch.tensor([-1.0, 0.0, 1.0]))
    assert not replacement(images, "zeros", fill=None, blur=4, noise=rng(0)).any()
    noisy = replacement(images, "noise", fill=FILL, blur=4, noise=rng(0))
    assert noisy.abs().max() <= 1
    assert noisy.std() > 0.4
    blurred = replacement(images, "blur", fill=None, blur=2, noise=rng(0))
    assert blurred.std() < 0.3 * images.std()
    ndimage = pytest.importorskip("scipy.ndimage")
    wanted = ndimage.gaussian_filter(images.numpy(), sigma=(0, 0, 2, 2), mode="nearest", truncate=3)
    np.testing.assert_allclose(blurred.numpy(), wanted, atol=1e-5)


def test_default_region_size():
    assert [explain.default_region_size(size) for size in (32, 64, 224)] == [4, 4, 9]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replace": "black"}, "mean, zeros, noise, blur"),
        ({"fill": None}, "fill"),
        ({"fill": (1.0,)}, "fill"),
        ({"region_size": 13}, "region_size"),
        ({"region_size": -1}, "region_size"),
        ({"random_orders": 0}, "random order"),
        ({"maps": {}}, "needs images, maps"),
        ({"maps": {"m": np.zeros((4, 3, 6, 6))}}, "shape"),
        ({"maps": {"random": np.zeros((4, 3, 12, 12))}}, "none called"),
    ],
)
def test_bad_input_is_a_sentence(case, change, words):
    model, images, maps = case
    arguments = {"maps": {"m": maps}, "seed": 0, "region_size": 4, "fill": FILL} | change
    with pytest.raises(BadInput, match=words):
        explain.perturbation_curves(model, images, **arguments)
