import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from stda import BadInput, show
from stda.explain.perturbation import mean_interval
from stda.show import charts, explained, figures

ALT = "A chart of maps that is only here to be tested."
METHODS = [f"method_{i}" for i in range(24)]


@pytest.fixture
def shown(monkeypatch):
    seen = []
    monkeypatch.setattr(explained, "show", lambda fig, *, alt, caption="": seen.append((fig, alt, caption)))
    return seen


def assert_readable(fig):
    """No label overlaps another or leaves the figure, and the figure is as wide as a page."""
    fig.draw_without_rendering()
    assert fig.get_figwidth() <= figures.WIDTH
    texts = [t for ax in fig.axes for t in (*ax.texts, ax.title, ax._left_title)]
    for ax in fig.axes:  # a tick beyond the axis is not drawn
        low, high = sorted(ax.get_ylim())
        texts += [t for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
    texts += [t for legend in fig.legends for t in legend.get_texts()]
    boxes = [t.get_window_extent() for t in texts if t.get_visible() and t.get_text().strip()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= -1 and box.x1 <= fig.bbox.width + 1 for box in boxes)


def perturbation(methods, replaces=("mean",), rankings=("fixed",), images=3, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for replace, ranking, (i, method) in itertools.product(replaces, rankings, enumerate(methods)):
        if ranking == "recomputed" and method in explained.REFERENCES:
            continue
        for order, image in itertools.product(range(2 if method == "random" else 1), range(images)):
            falls = 0.9 * np.exp(-(0.05 + 0.01 * i) * np.arange(9)) + 0.01 * rng.random(9)
            row = {"method": method, "replace": replace, "ranking": ranking, "order": order, "image": image}
            rows += [{**row, "regions": k, "probability": p} for k, p in enumerate(falls)]
    return pd.DataFrame(rows)


def labelled(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_perturbation_curves_are_means_over_images_and_random_orders():
    table = perturbation(["random", "input magnitude", "gradient", "deep_taylor"])
    fig = explained.perturbation_curves_figure(table, titles={"deep_taylor": "deep Taylor"})
    lines = labelled(fig.axes[0])
    assert set(lines) == {"random", "input magnitude", "gradient", "deep Taylor"}
    for name in ("random", "gradient"):
        expected = table[table["method"] == name].groupby("regions")["probability"].mean()
        np.testing.assert_allclose(lines[name].get_ydata(), expected)
    assert lines["random"].get_color() == charts.GREY
    assert len({to_hex(line.get_color()) for line in lines.values()}) == 4
    assert lines["deep Taylor"].get_color() == charts.colour(0)  # it falls fastest
    assert lines["deep Taylor"].get_linewidth() > lines["gradient"].get_linewidth()
    bands = {to_hex(band.get_facecolor()[0]): band.get_paths()[0].vertices for band in fig.axes[0].collections}
    assert set(bands) == {to_hex(charts.colour(0)), to_hex(charts.GREY)}
    values = table[table["method"] == "deep_taylor"].pivot(index="image", columns="regions", values="probability")
    highest = values.mean() + values.std(ddof=1) / np.sqrt(3)
    assert bands[to_hex(charts.colour(0))][:, 1].max() == pytest.approx(highest.max())
    alone = explained.perturbation_curves_figure(perturbation(["gradient"], images=1))
    assert not alone.axes[0].collections  # one image has no standard error


def test_each_row_of_curves_has_its_own_axis_which_begins_at_zero_where_they_fall_far():
    table = perturbation(["random", "gradient", "deep_taylor"], ("mean", "blur"), ("fixed", "recomputed"))
    little = table["replace"] == "blur"
    table["probability"] -= 0.25  # from 0.65 down to 0.26
    table.loc[little, "probability"] = 0.6 + table.loc[little, "probability"] / 10
    fig = explained.perturbation_curves_figure(table)
    far, near = (
        table.loc[rows].groupby(["ranking", "method", "regions"])["probability"].mean() for rows in (~little, little)
    )
    limits = [ax.get_ylim() for ax in fig.axes]
    assert limits[0] == limits[1]
    assert limits[2] == limits[3]
    assert limits[0][0] == 0
    assert far.max() < limits[0][1] < far.max() + 0.1
    assert near.min() - 0.02 < limits[2][0] < near.min()
    assert near.max() < limits[2][1] < near.max() + 0.02
    assert "own scale" in fig.get_supylabel()
    alone = explained.perturbation_curves_figure(table[little & (table["ranking"] == "fixed")])
    assert alone.axes[0].get_ylim()[0] > 0.5
    assert alone.get_supylabel() == "class probability"
    five = perturbation(["gradient"], tuple("abcde"))  # three panels and two: the sixth is empty and has no say
    five["probability"] = 0.6 + five["probability"] / 10
    assert all(ax.get_ylim()[0] > 0.5 for ax in explained.perturbation_curves_figure(five).axes)


def test_the_best_methods_have_colours_and_the_others_are_pale():
    table = perturbation(["random", "input magnitude", *METHODS], ("mean", "noise"), ("fixed", "recomputed"))
    fig = explained.perturbation_curves_figure(table, best=3)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        f"{how}, {ranking} ranking" for how in ("mean", "noise") for ranking in ("fixed", "recomputed")
    ]
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == ["method 23", "method 22", "method 21", "random", "input magnitude", "other methods (21)"]
    for ax in fig.axes:
        assert set(names[:5]) <= set(labelled(ax))  # references are also where nothing is recomputed for them
        assert sum(to_hex(line.get_color()) == explained.PALE for line in ax.lines if len(line.get_xdata())) == 21
    random = [labelled(ax)["random"].get_ydata() for ax in fig.axes]
    np.testing.assert_array_equal(random[0], random[1])
    assert_readable(fig)


def test_recomputed_methods_have_colours_beside_the_best_and_equal_curves_count_once():
    table = perturbation(["random", "input magnitude", *METHODS], ("mean", "noise"), ("fixed", "recomputed"))
    slow = ["method_0", "method_3"]  # of the worst, and the only ones with a recomputed ranking
    table = table[(table["ranking"] == "fixed") | table["method"].isin(slow)]
    fastest = table[table["method"] == "method_23"]
    third = table[(table["method"] == "method_3") & (table["ranking"] == "fixed")]
    table = pd.concat(
        [
            table,
            fastest.assign(method="twin", probability=fastest["probability"] + 1e-5),
            fastest.assign(method="triplet"),
            third.assign(method="third", probability=third["probability"] - 1e-5),  # stands behind the recomputed one
        ]
    )
    fig = explained.perturbation_curves_figure(table, best=2)
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    wanted = ["method 23 (and 2 alike)", "method 22", "method 3 (and 1 alike)", "method 0"]
    assert names == [*wanted, "random", "input magnitude", "other methods (20)"]
    assert [ax.get_title(loc="left").split(", ")[1] for ax in fig.axes] == ["fixed ranking", "recomputed ranking"] * 2
    for ax in fig.axes[1::2]:
        assert set(labelled(ax)) == {"method 3 (and 1 alike)", "method 0", "random", "input magnitude"}
        assert not any(to_hex(line.get_color()) == explained.PALE for line in ax.lines)
    lines = labelled(fig.axes[1])
    wanted = table.query("method == 'method_3' and replace == 'mean' and ranking == 'recomputed'")
    np.testing.assert_allclose(
        lines["method 3 (and 1 alike)"].get_ydata(), wanted.groupby("regions")["probability"].mean()
    )
    assert_readable(fig)


def test_colours_are_at_most_seven():
    table = perturbation(["random", "input magnitude", *METHODS], rankings=("fixed", "recomputed"))
    table = table[(table["ranking"] == "fixed") | table["method"].isin(METHODS[:9])]
    fig = explained.perturbation_curves_figure(table)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [
        *(f"method {i}" for i in range(8, 1, -1)),
        "random",
        "input magnitude",
        "other methods (17)",
    ]


def test_curves_of_several_arms_are_refused():
    table = perturbation(["gradient"])
    with pytest.raises(BadInput, match="2 arms: draw one figure"):
        explained.perturbation_curves_figure(pd.concat([table.assign(arm="a"), table.assign(arm="b")]))
    explained.perturbation_curves_figure(table.assign(arm="a"))
    with pytest.raises(BadInput, match=r"no column \['ranking'\]"):
        explained.perturbation_curves_figure(table.drop(columns="ranking"))
    with pytest.raises(BadInput, match="0 rows"):
        explained.perturbation_curves_figure(table[:0])


def sanity(methods, *, layers=4, alone=False, arms=(None,)):
    rows = []
    for arm, (i, method), k, image in itertools.product(arms, enumerate(methods), range(layers + 1), range(2)):
        row = {"method": method, "layer": f"layer {k}" if k else "none", "randomised": min(k, 1) if alone else k}
        row |= {"image": image, "spearman": 1 - k / (layers + i) + 0.02 * image, "ssim": 0.5}
        rows.append(row if arm is None else {"arm": arm} | row)
    return pd.DataFrame(rows)


def own(ax):
    return [line for line in ax.lines if line.get_linewidth() == 2]


@pytest.mark.parametrize("alone", [False, True])
def test_sanity_has_a_panel_per_method_with_the_others_pale(alone):
    fig = explained.sanity_curves_figure(sanity(METHODS[:5], alone=alone), titles={"method_0": "guided backprop"})
    panels = [ax for ax in fig.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in panels] == ["guided backprop", *(f"method {i}" for i in range(1, 5))]
    for i, ax in enumerate(panels):
        (line,) = own(ax)
        np.testing.assert_allclose(line.get_xdata(), range(5))
        np.testing.assert_allclose(line.get_ydata(), 1.01 - np.arange(5) / (4 + i))
        assert sum(other.get_color() == explained.PALE for other in ax.lines) == 5
        assert any(list(other.get_ydata()) == [0, 0] for other in ax.lines)  # the zero line
    assert ("alone" in fig.get_supxlabel()) == alone
    assert not fig.legends


def test_sanity_of_24_methods_is_readable_and_arms_are_lines():
    assert_readable(explained.sanity_curves_figure(sanity(METHODS), titles={METHODS[3]: "deep Taylor, bounded, long"}))
    fig = explained.sanity_curves_figure(sanity(METHODS[:2], arms=("none", "wgan")), measure="ssim")
    assert [len(own(ax)) for ax in fig.axes] == [2, 2]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["none", "wgan"]
    with pytest.raises(BadInput, match="8 arms"):
        explained.sanity_curves_figure(sanity(METHODS[:1], arms=tuple("abcdefgh")))


ANSWERS = ["more", "less", "equivalent", "no difference seen", "undecided"]


def compared(arms, objects=("lesion", "hair"), methods=("deep_taylor",)):
    rows = []
    for i, (arm, what, method) in enumerate(itertools.product(arms, objects, methods)):
        row = {"arm": arm, "against": "classic", "what": what, "method": method, "difference": 0.01 * (i % 5 - 2)}
        rows.append(row | {"low": row["difference"] - 0.02, "high": row["difference"] + 0.02, "answer": ANSWERS[i % 5]})
    return pd.DataFrame(rows)


def test_attention_has_a_row_per_arm_and_a_panel_per_object():
    table = compared(["nst", "dcgan", "wgan"])
    fig = explained.attention_figure(table)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["lesion", "hair"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["nst", "dcgan", "wgan"]
    for ax, what in zip(fig.axes, ("lesion", "hair"), strict=True):
        rows = table[table["what"] == what]
        intervals = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
        np.testing.assert_allclose(intervals, rows[["low", "high"]])
        marks = [line for line in ax.lines if line.get_marker() != "None" and len(line.get_xdata()) == 1]
        assert [m.get_marker() for m in marks] == [explained.ANSWERS[a]["marker"] for a in rows["answer"]]
        assert [m.get_ydata()[0] for m in marks] == [0, 1, 2]
    assert len({ax.get_xlim() for ax in fig.axes}) == 1
    assert fig.axes[0].get_xlim()[0] < 0 < fig.axes[0].get_xlim()[1]
    assert len({look["marker"] for look in explained.ANSWERS.values()}) == len(ANSWERS)
    assert "'classic'" in fig.get_supxlabel()


def test_attention_of_many_arms_and_methods_is_readable():
    arms = [f"pggan-pretrained-{i}" for i in range(30)]
    assert_readable(explained.attention_figure(compared(arms, ("lesion", "hair", "ruler", "vignette", "frame"))))
    fig = explained.attention_figure(compared(arms[:2], methods=("a", "b")), titles={"a": "deep Taylor"})
    assert fig.axes[0].get_yticklabels()[0].get_text() == "pggan-pretrained-0, deep Taylor"
    assert_readable(fig)


def test_attention_leaves_out_what_was_not_compared(shown, monkeypatch):
    table = compared(["nst", "dcgan"])
    table.loc[table["arm"] == "nst", ["difference", "low", "high", "answer"]] = [np.nan, np.nan, np.nan, "not compared"]
    fig = explained.attention_figure(table)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["dcgan"]
    said = []
    monkeypatch.setattr(explained, "text", said.append)
    show.attention(table[:2], alt=ALT)
    show.attention(table[:0], alt=ALT)
    assert len(said) == 2
    assert not shown
    with pytest.raises(BadInput, match=r"not \['perhaps'\]"):
        explained.attention_figure(table.assign(answer="perhaps"))


def focused(methods, arms=(None,)):
    rng, rows = np.random.default_rng(0), []
    for arm, (i, method), image in itertools.product(arms, enumerate(methods), range(6)):
        row = {"method": method, "image_id": str(image), "group": f"lesion {image // 2}", "label": "MEL"}
        row |= {"inside": 0.2 + 0.02 * i + 0.05 * rng.random(), "area": 0.1 + 0.02 * image}
        row["gain"] = row["inside"] - row["area"]
        rows.append(row if arm is None else {"arm": arm} | row)
    return pd.DataFrame(rows)


def test_focus_is_the_gain_over_the_area_sorted_with_zero_as_reference():
    table = focused(METHODS[:3])
    table.loc[0, ["inside", "gain"]] = np.nan  # a map without positive relevance
    fig = explained.focus_figure(table, titles={"method_2": "deep Taylor"})
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["deep Taylor", "method 1", "method 0"]
    means = table.groupby("method")["gain"].mean()
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, sorted(means, reverse=True))
    assert list(ax.lines[0].get_xdata()) == [0, 0]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["relevance spread evenly"]
    assert "beyond its share of the area" in ax.get_xlabel()
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    rows = table[table["method"] == "method_2"]
    expected = mean_interval(rows["gain"].to_numpy(), rows["group"].to_numpy())
    np.testing.assert_allclose(bars[0].get_xdata(), expected)


def test_focus_is_paired_and_sorted_by_the_gain():
    table = focused(METHODS[:3])
    shares = {"method_0": (0.7, 0.01), "method_1": (0.5, 0.2), "method_2": (0.9, -0.3)}  # the area decides, not inside
    for name, (inside, gain) in shares.items():
        table.loc[table["method"] == name, ["inside", "area", "gain"]] = inside, inside - gain, gain
    table.loc[table["method"] == "method_1", "inside"] += np.arange(6) / 10  # lesions of all sizes, the same gain
    ax = explained.focus_figure(table).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["method 1", "method 0", "method 2"]
    assert [t.get_text() for t in ax.texts] == ["+0.20", "+0.01", "\N{MINUS SIGN}0.30"]
    bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    np.testing.assert_allclose(bars, [[0.2, 0.2], [0.01, 0.01], [-0.3, -0.3]], atol=1e-12)
    (word,) = explained.focus_figure(table[table["method"] == "method_0"].assign(gain=-0.001)).axes[0].texts
    assert word.get_text() == "+0.00"
    with pytest.raises(BadInput, match=r"no column \['gain'\]"):
        explained.focus_figure(table.drop(columns="gain"))


def test_focus_of_many_methods_and_arms_is_readable():
    assert_readable(explained.focus_figure(focused(METHODS)))
    fig = explained.focus_figure(focused(METHODS[:4], arms=("none", "classic", "wgan")))
    assert_readable(fig)
    assert {"none", "classic", "wgan"} < {text.get_text() for text in fig.legends[0].get_texts()}
    with pytest.raises(BadInput, match="No map has positive relevance"):
        explained.focus_figure(focused(METHODS[:1]).assign(gain=np.nan))
    with pytest.raises(BadInput, match="8 arms"):
        explained.focus_figure(focused(METHODS[:1], arms=tuple("abcdefgh")))


CALLS = {
    "perturbation_curves": (perturbation(["gradient"]),),
    "sanity_curves": (sanity(METHODS[:1]),),
    "attention": (compared(["nst"]),),
    "focus": (focused(METHODS[:1]),),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_chart_hands_its_words_on(shown, name):
    getattr(show, name)(*CALLS[name], alt=ALT, caption="below")
    assert shown[0][1:] == (ALT, "below")


@pytest.mark.parametrize("name", CALLS)
def test_every_chart_needs_alternative_text(name):
    with pytest.raises(ValueError, match="alt text"):
        getattr(show, name)(*CALLS[name], alt="")


def test_one_very_wide_interval_does_not_squeeze_the_others():
    table = compared(["nst", "dcgan", "wgan", "pggan"])
    usual = explained.attention_figure(table).axes[0].get_xlim()
    table.loc[0, ["low", "high"]] = -1.0, 1.0
    ax = explained.attention_figure(table).axes[0]
    assert ax.get_xlim()[1] < 2 * usual[1] < 1
    arrows = {line.get_marker(): line.get_xdata()[0] for line in ax.lines if line.get_marker() in ("<", ">")}
    assert arrows == {"<": ax.get_xlim()[0], ">": ax.get_xlim()[1]}
