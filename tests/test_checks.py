import pandas as pd
import pytest

from stda import BadInput
from stda.checks import check_amounts
from stda.study import validate

TRAIN = pd.Series({"a": 100, "b": 40, "c": 10})  # largest first, as ImageSet.counts orders them


def check(arm, train=TRAIN, **generators):
    arms = [{"arm": "plain"}, {"arm": "odd", **arm}]
    content = {"data": {"oracle_fraction": 0.2}, "classification": {"arms": arms}, **generators}
    check_amounts(validate(content, where="x"), train)


@pytest.mark.parametrize(
    ("arm", "wgan"),
    [
        ({}, {}),
        ({"ratio": 0.5}, {"ratio": 0.5}),
        ({"count": 20, "classes": ["b"]}, {}),  # half of 40
        ({"balance": True}, {"balance": True}),
        ({"balance": True}, {"count": 90}),
        ({"count": 90}, {"count": 90}),
        ({"ratio": 9.0, "classes": ["c"]}, {"balance": True}),  # 90 of class c either way
        ({"count": 5, "classes": ["a"]}, {"count": 5, "all_classes": True}),
        ({"protocol": "synthetic-only"}, {"all_classes": True}),
        ({"labels": "wrong"}, {}),
    ],
)
def test_amounts_that_the_generator_makes(arm, wgan):
    check({"synthetic": "wgan", **arm}, wgan=wgan)


@pytest.mark.parametrize(
    ("arm", "wgan", "said"),
    [
        ({"count": 21}, {}, "Arm 'odd' needs some 21 images of class b, but wgan makes 20: ask for fewer"),
        ({"count": 20}, {}, "needs some 20 images of class c, but wgan makes 5"),
        ({"balance": True}, {"count": 80}, "needs some 90 images of class c, but wgan makes 80"),
        ({"ratio": 9.0}, {"balance": True}, "needs some 360 images of class b, but wgan makes 60"),
        ({"classes": ["a"]}, {}, "needs some 50 images of class a, but wgan makes 0"),
        ({}, {"classes": ["b"]}, "needs some 5 images of class c, but wgan makes 0"),
        ({"classes": ["z"]}, {}, "Arm 'odd' or wgan: No class"),
        ({}, {"classes": ["z"]}, "Arm 'odd' or wgan: No class"),
        ({"labels": "shuffled", "classes": ["b"]}, {}, "Arm 'odd' has labels shuffled, which need added images of two"),
        (
            {"labels": "shuffled", "balance": True, "classes": ["a", "b"]},
            {"balance": True, "classes": ["a", "b"]},
            "two",
        ),
    ],
)
def test_amounts_that_it_does_not_make_are_one_sentence(arm, wgan, said):
    with pytest.raises(BadInput) as error:
        check({"synthetic": "wgan", **arm}, wgan=wgan)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("synthetic", ["oversample", "noised", "oracle", "self-training"])
def test_a_control_has_as_many_images_as_it_wants_but_no_other_classes(synthetic):
    check({"synthetic": synthetic, "count": 10_000})
    with pytest.raises(BadInput, match="Arm 'odd': No class"):
        check({"synthetic": synthetic, "classes": ["z"]})


def test_of_two_classes_only_one_gets_images_and_has_no_placebo_labels_unless_both_are_named():
    two = pd.Series({"a": 100, "b": 40})
    with pytest.raises(BadInput, match=r"two classes or more: name them in classes, of the arm and of wgan"):
        check({"synthetic": "wgan", "labels": "shuffled"}, two)
    both = {"classes": ["a", "b"]}
    check({"synthetic": "wgan", "labels": "shuffled", **both}, two, wgan=both)
    check({"synthetic": "wgan", "labels": "wrong"}, two)  # the other class is there to be named
    check({"synthetic": "nst", "labels": "shuffled"}, two)  # its labels are a network's opinion
