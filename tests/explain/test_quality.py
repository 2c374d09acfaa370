import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stda import BadInput, explain
from stda.compute import rng
from stda.explain.perturbation import mean_interval
from stda.explain.quality import rank_correlation

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def case():
    """A network without biases (so that rules without bias terms add up exactly), and images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 3, bias=False),
    )
    nn.init.normal_(model[-1].weight, generator=rng(1))
    return model, torch.rand(6, 3, 12, 12, generator=rng(0)) * 2 - 1


def logits_of(model, images):
    with torch.no_grad():
        return model(images).numpy()


# ------------------------------------------------------------------------------------------------------- conservation


def test_promises_are_kept_by_methods_that_make_them(case):
    model, images = case
    names = [name for name, method in explain.METHODS.items() if method.conserves and not method.fitted]
    assert {"deep_taylor", "integrated_gradients"} <= set(names)
    knobs = {"integrated_gradients": {"n_steps": 200}}
    for target in (None, 0, 1):
        maps = {name: explain.attribute(model, images, name, target, **knobs.get(name, {})) for name in names}
        table = explain.conservation_table(model, images, maps, target=target)
        assert list(table.columns) == ["method", "promises", "image", "sum", "promised", "error"]
        assert table.groupby("method", sort=False)["error"].median().max() < 2e-3
        promised = table.groupby("method")["promises"].unique().str[0].to_dict()
        assert promised == {name: explain.METHODS[name].conserves for name in names}


def test_a_difference_is_to_the_baseline_of_the_maps(case):
    model, images = case
    maps = {
        "integrated_gradients": explain.attribute(model, images, "integrated_gradients", n_steps=400, baseline=-0.7)
    }
    same = explain.conservation_table(model, images, maps, baseline=-0.7)
    assert same["error"].median() < 2e-3
    assert explain.conservation_table(model, images, maps)["error"].median() > 0.05


def test_promised_is_the_logit_its_positive_part_or_a_difference(case):
    model, images = case
    logits = logits_of(model, images)
    target = np.where(np.arange(6) < 3, logits.argmax(axis=1), logits.argmin(axis=1))
    chosen = logits[np.arange(6), target]
    assert (chosen[:3] > 0).any()
    assert (chosen[3:] < 0).any()
    maps = {name: np.full((6, 12, 12), 0.5) for name in ("deep_taylor", "integrated_gradients", "gradient", "mine")}
    grey = torch.full((1, 3, 12, 12), 0.3)
    table = explain.conservation_table(model, images, maps, target=target, baseline=grey)
    wanted = {
        "deep_taylor": ("logit", chosen.clip(min=0)),
        "integrated_gradients": ("difference", chosen - logits_of(model, grey)[0, target]),
        "gradient": ("", chosen),
        "mine": ("", chosen),
    }
    for name, (promises, promised) in wanted.items():
        part = table[table["method"] == name]
        assert set(part["promises"]) == {promises}
        np.testing.assert_allclose(part["promised"], promised, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(part["sum"], 72.0)
        np.testing.assert_allclose(part["error"], np.abs(72 - promised) / np.maximum(np.abs(promised), 1e-3), rtol=1e-4)


def test_channels_are_summed_and_zero_is_not_divided_by(case):
    _, images = case
    with torch.no_grad():
        still = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 2, bias=False))
        still[1].weight.zero_()
    maps = {"gradient": np.full((6, 3, 12, 12), 1e-3), "input": np.zeros((6, 12, 12))}
    table = explain.conservation_table(still, images, maps, target=0).groupby("method")[["sum", "error"]].max()
    assert table.loc["gradient", "sum"] == pytest.approx(0.432)
    assert table.loc["gradient", "error"] == pytest.approx(432)
    assert table.loc["input", "error"] == 0


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ({}, "at least one"),
        ({"m": np.zeros((6, 12, 11))}, "shape"),
        ({"m": np.full((6, 12, 12), np.inf)}, "not finite"),
    ],
)
def test_conservation_says_what_is_wrong(case, maps, words):
    with pytest.raises(BadInput, match=words):
        explain.conservation_table(*case, maps)


# ---------------------------------------------------------------------------------------------------------- stability


def test_rank_correlation_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    first, second = random.integers(0, 5, (4, 60)), random.normal(size=(4, 60))
    second[0] += first[0]
    wanted = [stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), wanted, rtol=1e-12)


def test_maps_of_equal_values_have_no_order():
    flat, other = np.zeros((1, 9)), np.arange(9.0)[None]
    assert rank_correlation(flat, flat + 3).tolist() == [1]
    assert rank_correlation(flat, other).tolist() == rank_correlation(other, flat).tolist() == [0]


def test_stability_equals_a_loop(case):
    model, images = case
    table = explain.stability_table(model, images, ["gradient", "deep_taylor"], noise=(0.1, 0.02), repeats=2, seed=5)
    assert list(table.columns) == ["method", "noise", "image", "similarity", "moved", "flipped"]
    stats = pytest.importorskip("scipy.stats")
    draws = rng(explain.quality.sub_seed(5, "stability"))
    logits = logits_of(model, images)
    targets = logits.argmax(axis=1)
    clean = explain.attribute(model, images, "gradient", targets).sum(dim=1).flatten(1)
    found, moved, flipped = [], [], []
    for _ in range(2):
        noisy = (images + 0.2 * torch.randn(images.shape, generator=draws)).clamp(-1, 1)
        maps = explain.attribute(model, noisy, "gradient", targets).sum(dim=1).flatten(1)
        found.append([stats.spearmanr(a, b).statistic for a, b in zip(clean, maps, strict=True)])
        now = logits_of(model, noisy)
        flipped.append(now.argmax(axis=1) != targets)
        a, b = (v - v.mean(axis=1, keepdims=True) for v in (logits, now))
        moved.append(np.linalg.norm(a - b, axis=1) / np.linalg.norm(a, axis=1))
    part = table.query("method == 'gradient' and noise == 0.1")
    np.testing.assert_allclose(part["similarity"], np.mean(found, axis=0), rtol=1e-6)
    np.testing.assert_allclose(part["moved"], np.mean(moved, axis=0), rtol=1e-4)
    np.testing.assert_array_equal(part["flipped"], np.mean(flipped, axis=0))
    by_level = table.query("method == 'gradient'").groupby("noise")[["similarity", "moved"]].mean()
    assert by_level.loc[0.02, "similarity"] > by_level.loc[0.1, "similarity"] > 0.3
    assert by_level.loc[0.02, "moved"] < by_level.loc[0.1, "moved"]


def test_no_noise_and_batches_change_nothing(case):
    model, images = case
    still = explain.stability_table(model, images, ["gradient"], noise=(0,), repeats=1, seed=0)
    assert still["similarity"].tolist() == pytest.approx([1.0] * 6)
    assert (still[["moved", "flipped"]] == 0).all(axis=None)
    settings = {"noise": (0.05,), "repeats": 1, "seed": 0, "target": 2}
    whole, pieces, other = (
        explain.stability_table(
            model,
            images,
            ["integrated_gradients"],
            **settings,
            knobs={"integrated_gradients": {"n_steps": 4, "baseline": baseline}},
            batch_size=size,
        )
        for baseline, size in ((0.5, 64), (0.5, 4), (-0.5, 64))
    )
    pd.testing.assert_frame_equal(whole, pieces, atol=1e-3)
    assert not np.allclose(whole["similarity"], other["similarity"])


@pytest.mark.parametrize("change", [{"repeats": 0}, {"noise": ()}, {"noise": (-0.1,)}, {"noise": (np.nan,)}])
def test_stability_says_what_is_wrong(case, change):
    with pytest.raises(BadInput, match="Stability needs"):
        explain.stability_table(*case, ["gradient"], seed=0, **change)
    with pytest.raises(BadInput, match="Stability needs"):
        explain.stability_table(*case, [], seed=0)


# -------------------------------------------------------------------------------------------------- all tests together


@pytest.fixture
def tables():
    """Two arms, made up: the right method is good at everything, the wrong one at nothing."""
    ends = ("", "_low", "_high")
    bounds = ["aopc", *(f"{column}{end}" for column in ("over_random", "over_input") for end in ends)]
    nan = np.nan
    rows = {
        "wrong": (0.1, -0.1, -0.2, -0.05, -0.2, -0.3, -0.1),
        "deep_taylor": (0.4, 0.2, 0.1, 0.3, 0.1, 0.05, 0.2),
        "gradient": (0.25, 0.05, -0.1, 0.2, 0.0, -0.1, 0.1),
        "input magnitude": (0.3, 0.1, 0.05, 0.2, 0.0, nan, nan),
        "random": (0.2, 0.0, nan, nan, -0.1, -0.2, -0.05),
    }
    aopc = pd.DataFrame.from_dict(rows, orient="index", columns=bounds).rename_axis("method").reset_index()
    aopc = pd.concat([aopc.assign(replace=how, ranking="fixed", images=4) for how in ("blur", "zeros")])
    aopc = pd.concat([aopc, aopc.assign(ranking="recomputed", over_random=9.0)])
    aopc.loc[aopc["replace"] == "zeros", "aopc"] += 1
    images = list(range(4))
    promises = {"deep_taylor": ("logit", [0.0, 0.001, 0.002, 9.0]), "wrong": ("difference", [0.5] * 4)}
    promises["gradient"] = ("", [7.0] * 4)
    conservation = pd.concat(
        [pd.DataFrame({"method": m, "promises": p, "image": images, "error": e}) for m, (p, e) in promises.items()]
    )
    sanity = {"deep_taylor": (0.1, 0.3, "yes"), "wrong": (0.2, 0.7, "undecided"), "input": (1.0, 1.0, "no")}
    sanity |= {"random": (1.0, 1.0, "no")}
    sanity = pd.DataFrame(
        [(name, *values) for name, values in sanity.items()],
        columns=["method", "spearman_after", "spearman_mean", "answer"],
    )
    focus = pd.DataFrame(
        {
            "method": ["deep_taylor"] * 4,
            "image_id": list("abcd"),
            "group": ["l", "l", "m", "m"],
            "gain": [0.1, 0.3, 0.5, np.nan],
        }
    )
    stability = pd.DataFrame(
        {
            "method": "deep_taylor",
            "noise": 0.05,
            "image": images,
            "similarity": [0.5, 0.7, 0.9, 0.9],
            "flipped": [0, 0, 1, 0.5],
        }
    )
    return {"aopc": aopc, "conservation": conservation, "sanity": sanity, "focus": focus, "stability": stability}


def test_method_table_by_hand(tables):
    table = explain.method_table(**tables)
    assert list(table["method"]) == ["deep_taylor", "input magnitude", "gradient", "random", "wrong", "input"]
    assert " ".join(table.columns) == (
        "method aopc over_random over_random_low over_random_high over_input over_input_low over_input_high promises "
        "conservation_error randomised cascade reads_weights lesion_gain lesion_gain_low lesion_gain_high "
        "stability stability_low stability_high flipped"
    )
    best = table.iloc[0]
    assert best["promises"] == "logit"
    wanted = {
        "aopc": 0.4,
        "over_random": 0.2,
        "conservation_error": 0.0015,
        "randomised": 0.1,
        "lesion_gain": 0.3,
        "cascade": 0.3,
    }
    wanted |= {"stability": 0.75, "flipped": 0.375}
    for column, value in wanted.items():
        assert best[column] == pytest.approx(value), column
    found = best[["lesion_gain_low", "lesion_gain_high"]].tolist()
    assert found == pytest.approx(mean_interval(np.array([0.1, 0.3, 0.5]), np.array(["l", "l", "m"])))
    found = best[["stability_low", "stability_high"]].tolist()
    assert found == pytest.approx(mean_interval(np.array([0.5, 0.7, 0.9, 0.9])))
    by_method = table.set_index("method")
    assert by_method.loc["gradient", ["randomised", "conservation_error"]].isna().all()  # promises nothing
    assert by_method.loc["wrong", "conservation_error"] == 0.5
    answers = {"deep_taylor": "yes", "random": "no", "wrong": "undecided", "input": "no"}
    assert by_method["reads_weights"].to_dict() == answers | {"gradient": "", "input magnitude": ""}
    assert explain.method_table(**tables, replace="zeros").iloc[0]["aopc"] == pytest.approx(1.4)


def test_arms_stay_apart_and_in_order(tables):
    two = {}
    for name, table in tables.items():
        other = table.assign(over_random=-table["over_random"]) if name == "aopc" else table
        two[name] = pd.concat([table.assign(arm="none"), other.assign(arm="gan")])
    table = explain.method_table(**two)
    assert list(table["arm"]) == ["none"] * 6 + ["gan"] * 6
    assert list(table["method"][:2]) == ["deep_taylor", "input magnitude"]
    assert list(table["method"][6:8]) == ["wrong", "random"]
    pd.testing.assert_frame_equal(table[:6].drop(columns="arm"), explain.method_table(**tables))


@pytest.mark.parametrize("name", ["aopc", "conservation", "sanity", "focus", "stability"])
def test_missing_tables_leave_nan(tables, name):
    whole = explain.method_table(**tables)
    rest = explain.method_table(**{key: table for key, table in tables.items() if key != name})
    alone = explain.method_table(**{name: tables[name]})
    assert list(whole.columns) == list(rest.columns) == list(alone.columns)
    gone = {
        "aopc": "over_random_high",
        "conservation": "conservation_error",
        "sanity": "cascade",
        "focus": "lesion_gain_low",
        "stability": "stability",
    }
    for test, column in gone.items():
        assert rest[column].isna().all() == (test == name)
        assert alone[column].isna().all() == (test != name)
    assert (rest["reads_weights"] == "").all() == (name == "sanity")
    assert (alone["reads_weights"] == "").all() == (name != "sanity")
    explain.method_sentence(alone)


def test_method_table_says_what_is_wrong(tables):
    with pytest.raises(BadInput, match="at least one table"):
        explain.method_table()
    with pytest.raises(BadInput, match="in all of them or in none"):
        explain.method_table(**tables | {"focus": tables["focus"].assign(arm="none")})
    with pytest.raises(BadInput, match=r"no replacement 'mean', only \['blur', 'zeros'\]"):
        explain.method_table(**tables, replace="mean")
    steps = pd.DataFrame({"method": ["gradient"], "randomised": 1, "image": 0, "spearman": 0.1})
    with pytest.raises(BadInput, match="sanity_summary"):
        explain.method_table(sanity=steps)


NOISE = "Under the noise of the stability test the network itself changes 38% of its answers."


def test_sentence(tables):
    assert explain.method_sentence(explain.method_table(**tables)) == (
        "Deep Taylor passes every trial that was run. Of 3 methods 1 finds decisive regions better than random orders "
        "(1 worse), 1 better than the input's own magnitude (1 worse), 1 of the 2 tried is shown to read the weights "
        "(1 undecided), 1 of the 2 tried keeps its promise of what relevances sum to (1 broken); the intervals are not "
        f"corrected for the number of methods. {NOISE}"
    )
    none = explain.method_sentence(explain.method_table(**tables), conservation_tolerance=0.001)
    assert none.startswith("No method passes every trial. Of 3 methods 1 finds")
    assert "none of the 2 tried keep their promise of what relevances sum to (2 broken)" in none
    blind = tables["sanity"].assign(answer="no")
    said = explain.method_sentence(explain.method_table(**tables | {"sanity": blind}))
    assert said.startswith("No method passes every trial. Of 3 methods 1 finds")
    assert "none of the 2 tried are shown to read the weights, 1 of the 2" in said


def test_who_passes_every_trial(tables):
    """Each trial alone can fail a method, one that was not taken too; without a promise there is none to break."""
    table = explain.method_table(**tables)
    good = table[table["method"] == "deep_taylor"]
    table = pd.concat([good, good.assign(method="gradient", promises="", conservation_error=np.nan)])
    both = "Deep Taylor and gradient pass every trial that was run."
    assert explain.method_sentence(table).startswith(both)
    for column, value in (
        ("over_random_low", 0.0),
        ("over_input_low", -0.1),
        ("reads_weights", "undecided"),
        ("reads_weights", ""),
        ("conservation_error", 0.02),
    ):
        worse = table.assign(**{column: table[column].where(table["method"] == "gradient", value)})
        assert explain.method_sentence(worse).startswith("Gradient passes every trial that was run."), column
    unheard = table.assign(reads_weights="")  # a trial that nobody took fails nobody
    said = explain.method_sentence(unheard)
    assert said.startswith(both)
    assert "The sanity check was not run." in said
    promised = explain.method_sentence(explain.method_table(conservation=tables["conservation"]))
    assert promised.startswith("Deep Taylor passes every trial that was run. Of 3 methods 1 of the 2 tried keeps")


def test_references_are_not_counted(tables):
    references = tables["sanity"][tables["sanity"]["method"].isin(["input", "random"])]
    said = explain.method_sentence(explain.method_table(sanity=references))
    assert "The sanity check was not run." in said
    assert "every trial" not in said


def test_the_sentence_of_a_table_from_a_file(tables, tmp_path):
    """In a file an empty answer becomes nan."""
    table = explain.method_table(**tables)
    table.to_csv(tmp_path / "methods.csv", index=False)
    assert explain.method_sentence(pd.read_csv(tmp_path / "methods.csv")) == explain.method_sentence(table)
    table.assign(reads_weights="").to_csv(tmp_path / "methods.csv", index=False)
    assert "The sanity check was not run." in explain.method_sentence(pd.read_csv(tmp_path / "methods.csv"))


def test_the_sentence_agrees_with_the_summary():
    """One criterion: late forgets only with the last layer, so its maps end low and are high on the way."""
    steps = {"late": (0.9, 0.9, 0.1), "early": (0.2, 0.1, 0.1), "never": (1.0, 1.0, 1.0)}
    rows = [
        {"method": name, "randomised": k, "image": i, "spearman": v + 0.01 * i, "ssim": 0.5}
        for name, values in steps.items()
        for k, v in enumerate(values, start=1)
        for i in range(3)
    ]
    table = explain.method_table(sanity=explain.sanity_summary(pd.DataFrame(rows)))
    assert table.set_index("method")["reads_weights"].to_dict() == {"late": "no", "early": "yes", "never": "no"}
    np.testing.assert_allclose(table["randomised"], [0.11, 0.11, 1.01])
    np.testing.assert_allclose(table["cascade"], [1.9 / 3 + 0.01, 0.4 / 3 + 0.01, 1.01])
    assert explain.method_sentence(table).startswith(
        "Early passes every trial that was run. Of 3 methods 1 is shown to read the weights; the"
    )


def test_a_paragraph_for_each_arm(tables):
    two = {name: pd.concat([table.assign(arm=arm) for arm in ("none", "gan")]) for name, table in tables.items()}
    paragraphs = explain.method_sentence(explain.method_table(**two)).split("\n\n")
    alone = explain.method_sentence(explain.method_table(**tables))
    assert paragraphs == [f"Arm none: {alone}", f"Arm gan: {alone}"]


def test_sentence_without_tests_and_without_intervals(tables):
    bare = explain.method_sentence(explain.method_table(stability=tables["stability"].assign(arm="gan")))
    assert bare == (
        "Arm gan: No map was compared with random orders. No map was compared with the order of input magnitude. "
        "The sanity check was not run. No promise of what relevances sum to was checked. "
        "Under the noise of the stability test the network itself changes 38% of its answers."
    )
    aopc = tables["aopc"].assign(over_random_low=np.nan, over_random_high=np.nan)
    said = explain.method_sentence(explain.method_table(aopc=aopc, sanity=tables["sanity"]))
    assert said.startswith("No method passes every trial. Of 3 methods none find decisive regions better than random")
    assert said.endswith("Stability under noise was not measured.")
