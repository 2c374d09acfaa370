import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.stats import spearmanr
from torch import nn

from stda import BadInput, classify, explain
from stda.compute import rng
from stda.explain import sanity
from stda.explain.layers import layered
from stda.explain.quality import rank_correlation
from stda.images import ImageSet

LAYERS = ["none", "dense 3", "dense 2", "dense 1", "conv 5", "conv 4", "conv 3", "conv 2", "conv 1"]
METHODS = ["input", "random", "gradient", "guided_backprop", "pattern_attribution"]


def spots(n, seed):
    """Pictures of noise with a bright spot; the class is its corner."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    pixels = random.normal(110, 25, (n, 32, 32, 3))
    for i, label in enumerate(labels):
        top, left = np.array([(2, 2), (2, 18), (18, 10)][label]) + random.integers(0, 4, 2)
        pixels[i, top : top + 8, left : left + 8] += random.uniform(30, 80)
    table = pd.DataFrame({"image_id": [f"{seed}-{i}" for i in range(n)], "label": labels.astype(str), "split": "train"})
    return ImageSet(pixels.clip(0, 255).astype(np.uint8), table)


@pytest.fixture(scope="module")
def train():
    return spots(192, 0)


@pytest.fixture(scope="module")
def model(train):
    torch.manual_seed(0)
    model = classify.build("vgg8", n_classes=3, size=32, width=0.25).train()
    x, y = train.as_tensor(), torch.tensor(train.labels.astype(int))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(50):
        rows = torch.arange(32) + 32 * (step % 6)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    model.classes = ["0", "1", "2"]
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return spots(16, 1).as_tensor()


@pytest.fixture(scope="module")
def table(model, images, train):
    return explain.randomisation_table(model, images, METHODS, seed=0, train=train.select(slice(0, 32)))


def test_the_network_has_learnt_something(model):
    new = spots(100, 2)
    assert (explain.targets_of(model, new.as_tensor()).numpy() == new.labels.astype(int)).mean() > 0.9


def test_rows(table):
    assert list(table.columns) == ["method", "layer", "randomised", "image", "spearman", "ssim"]
    assert list(table["layer"].unique()) == LAYERS
    assert len(table) == len(METHODS) * len(LAYERS) * 16
    assert (table["randomised"] == table["layer"].map(LAYERS.index)).all()
    start = table[table["randomised"] == 0]
    assert (start[["spearman", "ssim"]] == 1).all(axis=None)
    assert table[["spearman", "ssim"]].notna().all(axis=None)


def test_what_does_not_look_at_the_network_stays_and_the_gradient_falls(table):
    blind = table[table["method"].isin(["input", "random"])]
    assert (blind[["spearman", "ssim"]] == 1).all(axis=None)
    mean = table.groupby(["method", "randomised"])["spearman"].mean().unstack()
    assert mean.loc["gradient", 8] < 0.3
    # guided backprop hardly sees the upper layers
    assert (mean.loc["guided_backprop", [1, 2, 3, 4]] > mean.loc["gradient", [1, 2, 3, 4]] + 0.2).all()
    summary = explain.sanity_summary(table).set_index("method")
    assert list(summary.index) == METHODS
    blind = {"input": "no", "random": "no", "gradient": "yes"}
    assert {name: summary.loc[name, "answer"] for name in blind} == blind
    assert "yes" not in set(summary.loc[["guided_backprop", "pattern_attribution"], "answer"])
    assert (summary["blank"] == 0).all()
    assert summary.loc["input", "low"] == summary.loc["input", "high"] == summary.loc["input", "mean_high"] == 1


def test_each_layer_alone(model, images, table):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    steps = []
    alone = explain.randomisation_table(
        model, images, ["gradient"], seed=0, cascading=False, callback=lambda record: steps.append(record["layer"])
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert steps == LAYERS[1:] == list(alone["layer"].unique())[1:]
    assert set(alone.loc[alone["layer"] != "none", "randomised"]) == {1}
    found, cascade = (t[t["method"] == "gradient"].set_index(["layer", "image"])["spearman"] for t in (alone, table))
    pd.testing.assert_series_equal(found["dense 3"], cascade["dense 3"])  # the first step is the same
    weights = layered(model)
    drawn = {name: sanity._redrawn(unit, noise) for noise in [rng(0)] for name, unit in sanity._units(weights).items()}
    weights[0].load_state_dict(drawn["conv 1"])  # the lowest layer alone, by hand
    targets = explain.targets_of(model, images)
    maps = [
        explain.attribute(network, images, "gradient", targets).sum(1).abs().flatten(1) for network in (model, weights)
    ]
    wanted = [spearmanr(a, b).statistic for a, b in zip(*maps, strict=True)]
    np.testing.assert_allclose(found["conv 1"], wanted, atol=1e-3)


def test_new_weights_keep_their_size():
    layer = nn.Linear(400, 300)
    nn.init.normal_(layer.weight, mean=0.3, std=0.4)
    new = sanity._redrawn(layer, rng(1))
    assert new["weight"].square().mean().sqrt().item() == pytest.approx(0.5, rel=0.02)
    assert abs(new["weight"].mean().item()) < 0.01
    assert abs(torch.corrcoef(torch.stack([new["weight"].flatten(), layer.weight.flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize(("name", "top", "count"), [("squeezenet1_0", "conv 10", 18), ("resnet18", "dense 1", 10)])
def test_branches_are_one_layer(name, top, count):
    units = sanity._units(layered(classify.build(name, n_classes=3, size=32)))
    names = list(units)
    assert (names[0], names[-1], len(names)) == (top, "conv 1", count)
    assert [n for n in names if n.startswith("block")] == [f"block {i}" for i in range(8, 0, -1)]
    drawn = sanity._redrawn(units["block 7"], rng(0))
    assert set(drawn) == {key for key, _ in units["block 7"].named_parameters()}
    assert any(key.startswith("branches.1.") for key in drawn)


def test_similarity_of_maps_by_a_public_library():
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    random = np.random.default_rng(0)
    old = random.gamma(0.3, size=(4, 24, 24)).astype(np.float32)
    new = (old + random.gamma(0.3, size=old.shape)).astype(np.float32).round(1)  # with ties
    found = sanity._compared({"m": old}, {"m": new}, "conv 1", 3)
    wanted = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(old, new, strict=True)]
    np.testing.assert_allclose(found["spearman"], wanted, rtol=1e-12)
    grey = [
        torch.tensor(m / np.quantile(m, 0.99, axis=(1, 2), keepdims=True)).clamp(max=1)[:, None] for m in (old, new)
    ]
    theirs = torchmetrics.structural_similarity_index_measure(
        *(g.double() for g in grey), data_range=1.0, reduction="none"
    )
    np.testing.assert_allclose(found["ssim"], theirs, atol=5e-3)  # ours has 256 levels


def test_constant_maps_are_the_same_or_undefined():
    random = np.random.default_rng(0)
    some, zero = random.random((1, 12, 12)), np.zeros((1, 12, 12))
    sparse = zero.copy()
    sparse[0, 3, 4] = 1.0
    old = np.concatenate([some, zero, zero, sparse, zero + 2, zero + 2, some])
    new = np.concatenate([zero, zero, some, sparse, zero + 2, zero + 3, zero + 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sanity._compared({"m": old}, {"m": new}, "conv 1", 1)
    wanted = [np.nan, np.nan, np.nan, 1.0, 1.0, np.nan, np.nan]  # nothing to compare, or no order, unless the same
    np.testing.assert_array_equal(found["spearman"], wanted)
    np.testing.assert_array_equal(found["ssim"], wanted)
    drawn = sanity._drawn(sparse)
    assert drawn.sum() == 255


def test_deep_taylor_of_a_logit_that_is_no_longer_positive(model, images):
    """The new last layer gives some classes a negative logit: their maps are zero: not different, but undefined."""
    table = explain.randomisation_table(model, images, ["deep_taylor"], seed=0)
    weights = layered(model)
    weights[-1].load_state_dict(sanity._redrawn(weights[-1], rng(0)))  # the top layer is drawn first
    targets = explain.targets_of(model, images)
    with torch.no_grad():
        positive = weights(images).gather(1, targets[:, None])[:, 0].numpy() > 0
    assert 0 < positive.mean() < 1
    first = table[table["randomised"] == 1]
    assert (first["spearman"].notna() == positive).all()
    assert (first["ssim"].notna() == positive).all()
    summary = explain.sanity_summary(first).iloc[0]
    assert (summary["images"], summary["blank"]) == (positive.sum(), 1 - positive.mean())
    assert summary["spearman_after"] == pytest.approx(first["spearman"].to_numpy()[positive].mean())


def test_the_same_seed_gives_the_same_table(model, images):
    one, same, other = (
        explain.randomisation_table(model, images[:3], ["gradient"], seed=seed, target="1", knobs={"gradient": {}})
        for seed in (4, 4, 5)
    )
    pd.testing.assert_frame_equal(one, same)
    assert not one["spearman"].equals(other["spearman"])


def test_knobs_reach_their_method(model, images):
    with pytest.raises(BadInput, match="no knob 'steps'"):
        explain.randomisation_table(model, images, ["gradient"], seed=0, knobs={"gradient": {"steps": 1}})


def cell(method, randomised, values, arm="none"):
    rows = {"arm": arm, "method": method, "layer": f"l{randomised}", "randomised": randomised}
    return pd.DataFrame({**rows, "image": range(len(values)), "spearman": values, "ssim": 0.25})


def test_summary_by_hand():
    table = pd.concat(
        [
            cell("a", 0, [1.0, 1.0] * 20),
            cell("a", 1, [0.4, 0.2] * 20),
            cell("a", 2, [0.2, 0.0] * 20),
            cell("late", 1, [0.9, 0.9] * 20),
            cell("late", 2, [0.0, 0.2] * 20),
            cell("a", 1, [0.6, 0.6] * 20, arm="x"),
        ]
    )
    found = explain.sanity_summary(table)
    assert found[["arm", "method"]].to_numpy().tolist() == [["none", "a"], ["none", "late"], ["x", "a"]]
    np.testing.assert_allclose(found["spearman_after"], [0.1, 0.1, 0.6])
    np.testing.assert_allclose(found["spearman_mean"], [0.2, 0.5, 0.6])
    assert found["answer"].tolist() == ["yes", "undecided", "no"]  # late: 0.5 over the cascade
    assert found["images"].tolist() == [40, 40, 40]
    expected = stats.t.interval(0.95, 39, loc=0.1, scale=stats.sem([0.2, 0.0] * 20))
    np.testing.assert_allclose(found.loc[0, ["low", "high"]].astype(float), expected)
    assert found["blank"].tolist() == [0, 0, 0]
    assert explain.sanity_summary(table, threshold=0.2)["answer"].tolist() == ["undecided", "no", "no"]
    assert explain.sanity_summary(table, threshold=0.6)["answer"].tolist() == ["yes", "yes", "no"]  # 0.6 is not below
    assert explain.sanity_summary(table.drop(columns="arm").iloc[:120])["spearman_after"].tolist() == pytest.approx(
        [0.1]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = explain.sanity_summary(table[table["image"] == 0])
    assert single[["low", "high"]].isna().all(axis=None)
    assert set(single["answer"]) == {"undecided"}


def test_summary_of_maps_that_vanish():
    """Each image is averaged over the steps at which it has a map; the rest is counted in blank."""
    nan = np.nan
    table = pd.concat(
        [
            cell("some", 0, [1.0, 1.0, 1.0, 1.0] * 20),
            cell("some", 1, [0.4, 0.2, 0.3, nan] * 20),
            cell("some", 2, [nan, 0.0, 0.1, nan] * 20),
            cell("never", 1, [nan] * 80),
            cell("never", 2, [nan] * 80),
            cell("early", 1, [0.9, 0.8, 0.9, 0.8] * 20),
            cell("early", 2, [nan] * 80),
        ]
    ).drop(columns="arm")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain.sanity_summary(table).set_index("method")
    some = found.loc["some"]
    assert some["spearman_after"] == pytest.approx(0.05)  # of images 1 and 2
    assert some["spearman_mean"] == pytest.approx((0.4 + 0.1 + 0.2) / 3)
    after = stats.t.interval(0.95, 39, loc=0.05, scale=stats.sem([0.0, 0.1] * 20))
    np.testing.assert_allclose(some[["low", "high"]].astype(float), after)
    way = stats.t.interval(0.95, 59, loc=0.7 / 3, scale=stats.sem([0.4, 0.1, 0.2] * 20))
    np.testing.assert_allclose(some[["mean_low", "mean_high"]].astype(float), way)
    assert found["answer"].to_dict() == {"some": "yes", "never": "undecided", "early": "no"}
    assert found["images"].to_dict() == {"some": 40, "never": 0, "early": 0}
    assert found["blank"].to_dict() == {"some": 3 / 8, "never": 1, "early": 1 / 2}
    assert found.loc["never", ["spearman_after", "low", "spearman_mean", "mean_high"]].isna().all()


def test_bad_input_is_a_sentence(model, images, train, table):
    for change, words in (
        ({"methods": ["saliency"]}, "guided_backprop"),
        ({"methods": []}, "give some of"),
        ({"methods": ["pattern_net"]}, "needs train"),
        ({"images": images[:0]}, "at least one image"),
        ({"target": 3}, "out of range"),
    ):
        with pytest.raises(BadInput, match=words):
            explain.randomisation_table(**{"model": model, "images": images, "methods": ["input"], "seed": 0} | change)
    test_fold = ImageSet(train.images, train.table.assign(split="test"))
    with pytest.raises(BadInput, match="train fold"):
        explain.randomisation_table(model, images, ["pattern_net"], seed=0, train=test_fold)
    with pytest.raises(BadInput, match="randomisation_table"):
        explain.sanity_summary(table[table["randomised"] == 0])
    with pytest.raises(BadInput, match="between 0 and 1"):
        explain.sanity_summary(table, threshold=1.5)


def test_a_network_without_rules_forgets_block_by_block(images):
    model = classify.build("mobilenet_v2", n_classes=3, size=32).eval()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    table = explain.randomisation_table(model, images[:2], ["gradient", "input"], seed=0)
    units = table["layer"].unique()
    assert units[:3].tolist() == ["none", "block 20", "block 19"]  # classifier, last convolution, then 17 blocks...
    assert len(units) == 21
    last = table[table["randomised"] == 20]
    assert (last.loc[last["method"] == "gradient", "spearman"] < 0.5).all()
    assert (last["spearman"][last["method"] == "input"] == 1).all()
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    for name, values in explain.forget(model, 20, seed=0).named_parameters():
        assert not torch.equal(values, before[name]) or not before[name].any(), name


def test_a_network_forgets_as_in_the_table(model, images):
    """Its maps are those that the table compares: the same seed, the same new weights."""
    table = explain.randomisation_table(model, images, ["gradient"], seed=5, target=0)
    ruined = explain.forget(model, 2, seed=5)
    before, after = (explain.attribute(net, images, "gradient", 0).sum(dim=1).abs() for net in (model, ruined))
    found = rank_correlation(*(maps.flatten(1).numpy() for maps in (before, after)))
    np.testing.assert_allclose(table.loc[table["randomised"] == 2, "spearman"], found, atol=1e-6)
    with pytest.raises(BadInput, match="cannot be drawn anew"):
        explain.forget(model, 99, seed=0)
