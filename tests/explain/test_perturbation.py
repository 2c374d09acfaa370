import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from stda import BadInput, explain
from stda.compute import Compute, rng
from stda.explain.perturbation import mean_interval, replacement

FILL = (127.5, 127.5, 127.5)
pytestmark = pytest.mark.filterwarnings("error")


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


def test_no_order_beats_that_of_the_exact_contributions():
    noise = rng(3)
    images = torch.rand(3, 1, 8, 8, generator=noise) * 2 - 1
    weight = torch.randn(1, 1, 8, 8, generator=noise)
    orders = {"exact": (images * weight).numpy()}
    for places in itertools.permutations(range(4)):
        grid = np.array(places, dtype=float).reshape(2, 2)
        orders[str(places)] = np.tile(-np.kron(grid, np.ones((4, 4))), (3, 1, 1))
    curves = explain.perturbation_curves(
        Bright(weight), images, orders, seed=0, region_size=4, replace="zeros", n_regions=4, target=0, random_orders=1
    )
    areas = {name: (c[:, :1] - c).mean(axis=1) for name, c in explain.mean_curves(curves).items()}
    best = np.max([area for name, area in areas.items() if name.startswith("(")], axis=0)
    np.testing.assert_allclose(areas["exact"], best, rtol=1e-6)
    assert (best > areas["input magnitude"]).any()


def test_recomputed_is_fixed_where_the_network_is_linear(case):
    model, images, maps = case
    curves = explain.perturbation_curves(
        model,
        images,
        {"m": maps},
        seed=0,
        region_size=4,
        replace="zeros",
        n_regions=9,
        recomputed={"m": lambda x, target: x * model.weight.detach()},
        target=0,
    )
    drawn = explain.mean_curves(curves)
    assert list(drawn) == ["m", "input magnitude", "random", "m, recomputed"]
    np.testing.assert_array_equal(drawn["m, recomputed"], drawn["m"])


def small_network():
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 16), nn.ReLU(), nn.Linear(16, 3)).double()


@pytest.mark.parametrize("every", [1, 2, 5])
def test_recomputed_equals_a_loop(every):
    model = small_network()
    images = torch.rand(5, 3, 6, 6, generator=rng(1)) * 2 - 1
    targets = explain.targets_of(model, images)
    curves = explain.perturbation_curves(
        model,
        images,
        {},
        seed=0,
        region_size=2,
        fill=(0, 100, 255),
        n_regions=7,
        recomputed=["gradient"],
        recompute_every=every,
    )
    found = curves.query("ranking == 'recomputed'")
    assert set(found["method"]) == {"gradient"}
    fill = (torch.tensor([0.0, 100, 255]) / 127.5 - 1).double()[:, None, None]
    for i in range(len(images)):
        x, left, wanted = images[i].double(), list(range(9)), []
        for k in range(8):
            wanted.append(model(x[None]).softmax(dim=1)[0, targets[i]].item())
            if k % every == 0:
                relevance = explain.attribute(model, x[None].float(), "gradient", int(targets[i])).abs().sum(dim=1)[0]
                ranked = sorted(left, key=lambda r: -relevance[r // 3 * 2 :, r % 3 * 2 :][:2, :2].mean().item())
            region = ranked[k % every]
            left.remove(region)
            x = x.clone()
            x[:, region // 3 * 2 :, region % 3 * 2 :][:, :2, :2] = fill
        np.testing.assert_allclose(found[found["image"] == i]["probability"], wanted, rtol=1e-5)
    still = explain.perturbation_curves(
        model, images, {"g": explain.attribute(model, images, "gradient")}, seed=0, region_size=2, replace="zeros"
    )
    assert not np.allclose(still.query("method == 'g'")["probability"][:7], found["probability"][:7])


def test_several_replacements_are_what_each_gives_alone(case):
    model, images, maps = case
    settings = {"seed": 0, "region_size": 4, "fill": FILL, "target": 0}
    names = ("zeros", "noise", "mean", "blur")
    curves = explain.perturbation_curves(model, images, {"m": maps}, replace=names, **settings)
    assert list(curves.columns) == ["method", "replace", "ranking", "order", "image", "regions", "probability"]
    assert list(dict.fromkeys(curves["replace"])) == list(names)
    for how in names:
        alone = explain.perturbation_curves(model, images, {"m": maps}, replace=how, **settings)
        both = curves[curves["replace"] == how].reset_index(drop=True)
        pd.testing.assert_frame_equal(both, alone)
        for name, values in explain.mean_curves(alone).items():
            np.testing.assert_array_equal(explain.mean_curves(curves, replace=how)[name], values)
    table = explain.aopc_table(curves)
    assert len(table) == 4 * 3
    assert table.groupby("replace")["aopc"].nunique().min() == 3


def test_the_right_map_beats_both_references_and_the_wrong_one_loses(case):
    model, images, maps = case
    settings = {"seed": 1, "region_size": 3, "replace": "zeros", "target": 0, "random_orders": 20, "n_regions": 8}
    curves = explain.perturbation_curves(model, images, {"right": maps, "wrong": -maps}, **settings)
    table = explain.aopc_table(curves).set_index("method")
    for column in ("over_random", "over_input"):
        assert table.loc["right", column] > 0 > table.loc["wrong", column]
        assert table.loc["right", f"{column}_low"] > table.loc["wrong", f"{column}_high"]
    assert table.loc["random", "over_random"] == table.loc["input magnitude", "over_input"] == 0
    assert table.loc["random", "over_input"] == -table.loc["input magnitude", "over_random"]
    assert np.isnan(table.loc["random", "over_random_low"])
    assert np.isfinite(table.loc["random", "over_input_low"])


def by_hand(rows):
    long = [(*key, image, k, p) for *key, image, ps in rows for k, p in enumerate(ps)]
    return pd.DataFrame(long, columns=["method", "ranking", "order", "image", "regions", "probability"]).assign(
        replace="zeros"
    )


def test_area_by_hand():
    curves = by_hand(
        [
            ("m", "fixed", 0, 0, (0.9, 0.5, 0.1)),
            ("m", "recomputed", 0, 0, (0.9, 0.3, 0.0)),
            ("random", "fixed", 0, 0, (0.9, 0.9, 0.6)),
            ("random", "fixed", 1, 0, (0.9, 0.7, 0.6)),
            ("input magnitude", "fixed", 0, 0, (0.9, 0.6, 0.6)),
        ]
    )
    table = explain.aopc_table(pd.concat([curves.assign(arm="none"), curves.assign(arm="gan")]))
    assert " ".join(table.columns) == (
        "arm method replace ranking aopc over_random over_random_low over_random_high over_input over_input_low "
        "over_input_high images"
    )
    assert list(table["arm"]) == ["none"] * 4 + ["gan"] * 4
    one = table[:4].set_index(["method", "ranking"])
    assert one.loc[("m", "fixed"), "aopc"] == pytest.approx((0 + 0.4 + 0.8) / 3)
    assert one.loc[("m", "recomputed"), "aopc"] == pytest.approx((0 + 0.6 + 0.9) / 3)
    assert one.loc[("random", "fixed"), "aopc"] == pytest.approx((0 + 0.1 + 0.3) / 3)
    assert one.loc[("m", "fixed"), "over_random"] == pytest.approx(0.8 / 3)
    assert one.loc[("m", "recomputed"), "over_input"] == pytest.approx((1.5 - 0.6) / 3)
    np.testing.assert_allclose(explain.mean_curves(curves)["random"], [[0.9, 0.8, 0.6]])
    assert one.filter(regex="low|high").isna().all(axis=None)  # one image has no interval


def test_lesions_are_drawn_as_wholes():
    rows = [(name, "fixed", 0, i, (1.0, 1.0)) for name in ("random", "input magnitude") for i in range(6)]
    rows += [("m", "fixed", 0, i, (1.0, p)) for i, p in enumerate((0.8, 0.8, 0.8, 0.2, 0.2, 0.2))]
    curves = by_hand(rows)
    two = explain.aopc_table(curves, groups=list("aaabbb")).query("method == 'm'").iloc[0]
    gains = [0.1, 0.1, 0.1, 0.4, 0.4, 0.4]
    expected = stats.t.interval(0.95, 1, loc=0.25, scale=stats.sem([0.1, 0.4]))
    assert (two["over_random_low"], two["over_random_high"]) == pytest.approx(expected)
    six = explain.aopc_table(curves).query("method == 'm'").iloc[0]
    expected = stats.t.interval(0.95, 5, loc=0.25, scale=stats.sem(gains))
    assert (six["over_random_low"], six["over_random_high"]) == pytest.approx(expected)
    one = explain.aopc_table(curves, groups=["a"] * 6)
    assert one.filter(regex="low|high").isna().all(axis=None)
    with pytest.raises(BadInput, match="5 groups came with 6 images"):
        explain.aopc_table(curves, groups=list("aaabb"))
    with pytest.raises(BadInput, match="no order 'input magnitude'"):
        explain.aopc_table(curves[curves["method"] != "input magnitude"])


@pytest.mark.parametrize("lesions", [4, 40])
def test_the_interval_covers(lesions):
    random, hits = np.random.default_rng(0), 0
    for _ in range(300):
        groups = np.repeat(np.arange(lesions), random.integers(1, 5, size=lesions))
        values = 0.3 + (random.normal(size=lesions)[groups] + 0.5 * random.normal(size=len(groups))) * 0.2
        low, high = mean_interval(values, groups)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.98  # a bootstrap over 4 lesions covers 0.7, drawing images of 40 lesions 0.76


def test_the_interval_is_the_textbook_s_and_lesions_are_the_unit():
    values = np.random.default_rng(0).random(20)
    bounds = mean_interval(values, np.arange(20), confidence=0.9)
    np.testing.assert_allclose(bounds, stats.t.interval(0.9, 19, loc=values.mean(), scale=stats.sem(values)))
    twice = mean_interval(values.repeat(2), np.arange(20).repeat(2), confidence=0.9)
    np.testing.assert_allclose(twice, bounds)  # a second view of each lesion is no new evidence
    assert np.isnan(mean_interval(values, np.zeros(20))).all()


def test_interval_leaves_out_what_is_not_known():
    values = np.array([0.1, np.nan, 0.4, 0.2])
    assert mean_interval(values) == mean_interval(values[[0, 2, 3]])
    both = mean_interval(np.stack([values, values + 1], axis=1))
    np.testing.assert_allclose(np.array(both)[:, 0] + 1, np.array(both)[:, 1])
    assert np.isnan(mean_interval(np.array([np.nan, 1.0]))).all()


def test_one_region_and_one_image(case):
    model, images, maps = case
    settings = {"seed": 0, "replace": ["zeros", "blur"], "target": 0}
    curves = explain.perturbation_curves(model, images[:1], {"m": maps[:1]}, region_size=12, **settings)
    assert set(curves["regions"]) == {0, 1}
    table = explain.aopc_table(curves)
    assert (table.groupby("replace")["aopc"].agg(np.ptp) < 1e-9).all()  # there is only one order
    np.testing.assert_allclose(table["over_random"], 0, atol=1e-9)


def test_ties_are_broken_by_chance(case):
    model, images, _ = case
    many = images[:1].expand(600, -1, -1, -1)
    flat = np.zeros((600, 12, 12))
    flat[:, :4, :4] = 1.0
    curves = explain.perturbation_curves(
        model, many, {"flat": flat}, seed=0, region_size=4, n_regions=2, replace="zeros"
    )
    second = curves.query("method == 'flat' and regions == 2")["probability"].round(9).value_counts(normalize=True)
    assert len(second) == 8  # any of the eight equal regions comes second
    assert second.min() > 0.06
    first = curves.query("method == 'flat' and regions == 1")["probability"]
    assert first.nunique() == 1


def test_seed_decides_random_orders_only(case):
    model, images, maps = case
    settings = {"region_size": 4, "fill": FILL, "target": 0, "random_orders": 2}
    a, b, c = (explain.perturbation_curves(model, images, {"m": maps}, seed=s, **settings) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(a, b)
    assert a.query("method == 'm'")["probability"].equals(c.query("method == 'm'")["probability"])
    assert not a.query("method == 'random'")["probability"].equals(c.query("method == 'random'")["probability"])
    assert a.groupby("method")["order"].nunique().to_dict() == {"m": 1, "input magnitude": 1, "random": 2}


def test_input_magnitude_is_the_distance_from_grey():
    images = torch.zeros(1, 3, 8, 8)
    images[0, :, :4, :4], images[0, :, 4:, 4:], images[0, :, :4, 4:] = 0.2, -0.9, 0.5
    model = Bright(torch.ones(1, 3, 8, 8) * 0.01)
    settings = {"seed": 0, "region_size": 4, "replace": "zeros", "target": 0, "n_regions": 4}
    drawn = explain.mean_curves(explain.perturbation_curves(model, images, {"m": images.numpy()}, **settings))
    wanted = brute_force(model, images[0], [3, 1, 0, 2], 4, 0.0)
    np.testing.assert_allclose(drawn["input magnitude"][0], wanted, rtol=1e-6)


def test_published_protocol_in_proportion():
    images = torch.zeros(1, 1, 224, 224)
    model = Bright(torch.zeros(1, 1, 1, 1))
    curves = explain.perturbation_curves(model, images, {"m": images}, seed=0, replace="zeros", random_orders=1)
    assert curves["regions"].max() == 100  # of 25 x 25 squares of 9 pixels


def test_callback_and_compute(case):
    model, images, maps = case
    seen = []
    explain.perturbation_curves(
        model,
        images,
        {"m": maps},
        seed=0,
        replace=("zeros", "blur"),
        random_orders=1,
        recomputed={"m": lambda x, target: x},
        callback=seen.append,
        compute=Compute(torch.device("cpu"), "bf16", 1),
    )
    assert [s["step"] for s in seen] == list(range(1, 9))
    assert {s["steps"] for s in seen} == {8}
    assert seen[-1] == {"step": 8, "steps": 8, "method": "m", "replace": "blur"}


def test_curves_are_drawn_of_one_arm_and_replacement(case):
    model, images, maps = case
    curves = explain.perturbation_curves(model, images, {"m": maps}, seed=0, replace=("zeros", "blur"), target=0)
    with pytest.raises(BadInput, match="curves of one replace"):
        explain.mean_curves(curves)
    arms = pd.concat([curves.assign(arm="a"), curves.assign(arm="b")])
    with pytest.raises(BadInput, match="curves of one arm"):
        explain.mean_curves(arms, replace="zeros")


def test_replacements():
    images = torch.rand(2, 3, 16, 16, generator=rng(0)) * 2 - 1
    grey = replacement(images, "mean", fill=(0, 127.5, 255), blur=4, noise=rng(0))
    torch.testing.assert_close(grey[1, :, 3, 5], torch.tensor([-1.0, 0.0, 1.0]))
    assert not replacement(images, "zeros", fill=None, blur=4, noise=rng(0)).any()
    noisy = replacement(images / 4, "noise", fill=(0, 127.5, 255), blur=4, noise=rng(0))
    drawn = torch.randn(images.shape, generator=rng(0)).numpy()
    wanted = np.array([-1, 0, 1])[:, None, None] + (images / 4).numpy().std(axis=(2, 3), keepdims=True) * drawn
    np.testing.assert_allclose(noisy.numpy(), wanted.clip(-1, 1), atol=1e-6)
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
        ({"replace": ()}, "replace is empty"),
        ({"recompute_every": 0}, "recompute_every"),
        ({"random_orders": 0}, "random order"),
        ({"maps": {}}, "needs images, maps"),
        ({"maps": {"m": np.zeros((4, 3, 6, 6))}}, "shape"),
        ({"maps": {"m": np.full((4, 12, 12), np.nan)}}, "not finite"),
        ({"maps": {"random": np.zeros((4, 3, 12, 12))}}, "none called"),
        ({"maps": {"input magnitude": np.zeros((4, 3, 12, 12))}}, "none called"),
        ({"recomputed": ["wrong"]}, "Unknown attribution method 'wrong'"),
        ({"n_regions": -1}, "n_regions is -1"),
        ({"batch_size": -8}, "batch_size -8"),
        ({"images": torch.zeros(3, 12, 12)}, "float images"),
        ({"recomputed": {"m": lambda x, target: x[:, :, :6]}}, "shape"),
    ],
)
def test_bad_input_is_a_sentence(case, change, words):
    model, images, maps = case
    arguments = {"images": images, "maps": {"m": maps}, "seed": 0, "region_size": 4, "fill": FILL} | change
    with pytest.raises(BadInput, match=words):
        explain.perturbation_curves(model, **arguments)


def test_methods_with_patterns_are_no_names_to_recompute():
    images = torch.zeros(1, 3, 12, 12)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 2))
    with pytest.raises(BadInput, match="map its name to a function"):
        explain.perturbation_curves(network, images, {"m": images}, seed=0, fill=FILL, recomputed="pattern_net")


def test_no_curve_has_no_area(case):
    model, images, maps = case
    curves = explain.perturbation_curves(model, images, {"m": maps}, seed=0, region_size=4, fill=FILL)
    with pytest.raises(BadInput, match="no curve"):
        explain.aopc_table(curves.iloc[:0])


def test_gradients_are_ranked_by_size_and_evidence_by_sign():
    """The region with a large negative value goes first for a gradient and last for relevance."""
    images, maps = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8)
    maps[..., 2:4], maps[..., 4:6] = -5.0, 1.0
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    settings = {"seed": 0, "region_size": 2, "replace": "zeros", "n_regions": 4, "random_orders": 1}
    images[..., 2:4] = 1.0  # the only region whose replacement changes anything
    curves = explain.perturbation_curves(network, images, {"gradient": maps, "lrp_z": maps}, **settings)
    one = curves.pivot_table(index="method", columns="regions", values="probability")
    changed = one.diff(axis=1).abs() > 1e-6
    assert changed.loc["gradient"].idxmax() == 1
    assert changed.loc["lrp_z"].idxmax() == 4
