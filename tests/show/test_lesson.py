import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex

from stda import BadInput, show
from stda.show import figures, lesson

ALT = "A chart of one neuron that is only here to be tested."
CONTRIBUTIONS = np.array([0.1, -2.0, 0.3, 1.0, 0.2, -0.5, 0.0])


def bars(ax):
    return [patch.get_width() for patch in ax.patches]


def names(fig):
    return [t.get_text() for t in fig.axes[0].get_yticklabels()]


def test_the_rows_are_the_strongest_inputs_for_and_against():
    rule = np.array([0.0, -0.5, 0.0, 1.5, 0.25, 0.0, 1.0])
    fig = lesson.neuron_figure(CONTRIBUTIONS, {"LRP-z": rule}, labels=list("abcdefg"), top=4)
    first, second = fig.axes
    assert names(fig) == ["d", "c", "f", "b"]  # as large as it gets, down to as negative as it gets
    np.testing.assert_allclose(bars(first), [1.0, 0.3, -0.5, -2.0])
    np.testing.assert_allclose(bars(second), [1.5, 0.0, 0.0, -0.5])
    colours = [to_hex(patch.get_facecolor()) for patch in first.patches]
    assert colours == [lesson.FOR] * 2 + [lesson.AGAINST] * 2
    assert first.get_title(loc="left") == "input × weight\nsum −0.9\n3 others: 0.3"
    assert second.get_title(loc="left") == "LRP-z\nsum 2.25\n3 others: 1.25"
    assert [t.get_text() for t in first.texts] == ["1", "0.3", "−0.5", "−2"]


@pytest.mark.parametrize(
    ("signs", "top", "positive", "negative"),
    [
        ([1] * 20 + [-1] * 20, 8, 5, 3),
        ([1] * 2 + [-1] * 20, 8, 2, 6),
        ([1] * 20 + [-1], 8, 5, 1),
        ([1] * 20, 8, 5, 0),
        ([-1] * 20, 8, 0, 8),
        ([1, -1], 1, 1, 0),
        ([0, -1], 1, 0, 1),
        ([0, 0, 1], 8, 1, 0),
    ],
)
def test_five_rows_in_eight_speak_for_the_class_where_there_are_as_many(signs, top, positive, negative):
    values = np.array(signs) * (1 + np.random.default_rng(0).random(len(signs)))
    fig = lesson.neuron_figure(values, {"z": values}, top=top)
    wanted = sorted(values[values > 0])[::-1][:positive] + sorted(values[values < 0])[:negative][::-1]
    assert len(wanted) == positive + negative
    np.testing.assert_allclose(bars(fig.axes[0]), wanted)
    assert names(fig) == [f"input {list(values).index(v) + 1}" for v in wanted]


def test_the_title_names_the_others_only_where_there_are_any():
    values = np.array([1.0, 2.0, -1.0])
    assert lesson.neuron_figure(values, {"z": values}).axes[0].get_title(loc="left") == "input × weight\nsum 2"
    fig = lesson.neuron_figure(values, {"z": -values}, top=2)
    assert fig.axes[0].get_title(loc="left") == "input × weight\nsum 2\n1 other: 1"
    silent = lesson.neuron_figure(values, {"z": -0.0 * values})
    assert [t.get_text() for t in silent.axes[1].texts] == ["0", "0", "0"]  # no negative zero


def test_panels_share_a_scale_unless_their_bars_are_short():
    rules = {"epsilon": CONTRIBUTIONS, "alpha": 3 * CONTRIBUTIONS, "w²": np.abs(CONTRIBUTIONS) / 10}
    rules["flat"] = np.full(7, 0.02)
    axes = lesson.neuron_figure(CONTRIBUTIONS, rules).axes
    scales = [ax.get_xlim() for ax in axes[:5]]
    assert scales[0] == scales[1] == scales[2]
    assert scales[0][0] < -6
    assert scales[0][1] > 3
    assert 0.2 < scales[3][1] < 0.4
    assert 0.02 < scales[4][1] < 0.04
    assert [ax.get_xlabel() for ax in axes[:5]] == ["", "", "", "own scale", "own scale"]


def test_a_neuron_of_many_rules_is_readable():
    values = np.random.default_rng(0).normal(size=32)
    rules = {f"LRP preset {i}, bounded": values * i for i in range(7)}
    fig = lesson.neuron_figure(values, rules, labels=[f"melanocytic {i}" for i in range(32)])
    fig.draw_without_rendering()
    assert fig.get_figwidth() <= figures.WIDTH
    texts = [t for ax in fig.axes for t in (*ax.texts, ax._left_title, ax.xaxis.label, *ax.get_yticklabels())]
    boxes = [t.get_window_extent() for t in texts if t.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(box.x0 >= -1 and box.x1 <= fig.bbox.width + 1 for box in boxes)


def test_a_neuron_that_does_not_fit_is_refused():
    good = np.ones(3)
    for values, rules, how in (
        (good, {"a": np.ones(2)}, {}),
        (good, {"a": good * np.nan}, {}),
        (good, {}, {}),
        (np.ones(0), {"a": np.ones(0)}, {}),
        (good, {"a": good}, {"labels": ["x"]}),
        (good, {"a": good}, {"top": 0}),
        (np.ones((3, 1)), {"a": good}, {}),
    ):
        with pytest.raises(BadInput, match="A neuron of"):
            lesson.neuron_figure(values, rules, **how)


def test_the_words_are_handed_on_and_a_silent_neuron_gets_a_sentence(monkeypatch):
    seen, said = [], []
    monkeypatch.setattr(lesson, "show", lambda fig, *, alt, caption="": seen.append((alt, caption)))
    monkeypatch.setattr(lesson, "text", said.append)
    show.neuron(CONTRIBUTIONS, {"z": CONTRIBUTIONS}, alt=ALT, caption="below")
    assert seen == [(ALT, "below")]
    assert not said
    show.neuron(np.zeros(3), {"z": np.zeros(3)}, alt=ALT)
    assert len(seen) == len(said) == 1
    with pytest.raises(BadInput, match="No input of this neuron"):
        lesson.neuron_figure(np.zeros(3), {"z": np.zeros(3)})


def test_a_neuron_needs_alternative_text():
    with pytest.raises(ValueError, match="alt text"):
        show.neuron(CONTRIBUTIONS, {"z": CONTRIBUTIONS}, alt="")
