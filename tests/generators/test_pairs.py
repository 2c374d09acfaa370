from collections import Counter

import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.generators.pairs import BLOCK, MODES, PairSampler, image_seed, label_at, target_shares

COUNTS = {"nv": 60, "mel": 25, "bcc": 10, "df": 5}


def sources(**counts):
    rows = [(f"{label}{i}", label) for label, n in (counts or {"nv": 7, "mel": 5, "bcc": 4}).items() for i in range(n)]
    return pd.DataFrame(rows, columns=["image_id", "label"])


def sampler(table=None, **knobs):
    return PairSampler(sources() if table is None else table, **({"content_class": "nv", "seed": 3} | knobs))


# ------------------------------------------------------------------------------------------------------------- labels


def test_target_shares():
    assert target_shares("balanced", COUNTS) == dict.fromkeys(sorted(COUNTS), 0.25)
    assert target_shares("empirical", COUNTS) == pytest.approx({"nv": 0.6, "mel": 0.25, "bcc": 0.1, "df": 0.05})
    assert target_shares("rare", COUNTS) == pytest.approx({"mel": 25 / 40, "bcc": 10 / 40, "df": 5 / 40})
    assert target_shares("mel=3, nv=1", COUNTS) == {"mel": 0.75, "nv": 0.25}
    assert target_shares({"mel": 2, "nv": 0}, COUNTS) == {"mel": 1.0}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("even", "are not understood"),
        ("mel=much", "are not understood"),
        ("mel=1,wart=1", "no class 'wart'"),
        ("mel=1,mel=2", "twice"),
        ("mel=-1,nv=2", "none negative"),
        ("mel=0", "one positive"),
        ("mel=nan", "give numbers"),
        ({}, "give numbers"),
    ],
)
def test_shares_that_are_none(wanted, said):
    with pytest.raises(BadInput, match=said):
        target_shares(wanted, COUNTS)


@pytest.mark.parametrize("wanted", ["balanced", "empirical", "rare", "mel=0.7,nv=0.3", "nv=0.999,df=0.001"])
def test_labels_keep_the_shares_in_every_prefix_of_blocks(wanted):
    shares = target_shares(wanted, COUNTS)
    counts = Counter()
    for index in range(2000):
        label, number = label_at(index, shares, seed=5)
        assert number == counts[label]  # running numbers, without holes
        counts[label] += 1
        if (index + 1) % BLOCK == 0:
            assert all(abs(counts[name] - share * (index + 1)) <= 1 for name, share in shares.items())


def test_labels_are_those_of_a_plain_sainte_lague_count_block_by_block():
    shares = target_shares({"a": 1, "b": 2, "c": 6.3, "d": 0.4}, {"a": 1, "b": 1, "c": 1, "d": 1})
    seats = dict.fromkeys(shares, 0)
    for block in range(40):
        for _ in range(BLOCK):  # the classical rule: the largest share / (2 seats + 1) comes next
            seats[max(shares, key=lambda name: shares[name] / (2 * seats[name] + 1))] += 1
        dealt = [label_at(i, shares, 0) for i in range(block * BLOCK, (block + 1) * BLOCK)]
        assert {name: 1 + max(k for label, k in dealt if label == name) for name, _ in dealt}.items() <= seats.items()


def test_labels_are_shuffled_by_the_seed_and_far_away_ones_come_at_once():
    shares = target_shares("balanced", COUNTS)
    one, other = ([label_at(i, shares, seed) for i in range(3 * BLOCK)] for seed in (1, 2))
    assert one != other
    assert one != sorted(one)
    label, number = label_at(10**12, shares, 1)
    assert label in COUNTS
    assert abs(number - 10**12 / 4) < BLOCK


def test_image_seeds_survive_floating_point_and_differ():
    seeds = [image_seed(1, i) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(int(float(seed)) == seed for seed in seeds)
    assert image_seed(2, 0) != image_seed(1, 0)


# -------------------------------------------------------------------------------------------------------------- pairs


def run(found, n, shares="balanced"):
    """Return label, content and styles of the first n images."""
    rows = []
    for i in range(n):
        label, k = found.label_at(i, shares)
        rows.append((label, *found.pair(label, k, i)))
    return rows


@pytest.mark.parametrize("mode", MODES)
def test_pairs_are_random_access_and_never_a_picture_with_itself(mode):
    features = np.random.default_rng(0).normal(size=(16, 4))
    for n_styles in (1, 2, 3):
        options = {"mode": mode, "features": features, "n_styles": n_styles}
        rows = run(sampler(**options), 120)
        fresh = sampler(**options)  # asked out of order, by another object
        for i in (119, 3, 64):
            label, k = fresh.label_at(i, "balanced")
            assert (label, *fresh.pair(label, k, i)) == rows[i]
        for label, content, styles in rows:
            assert len({content, *styles}) == 1 + n_styles
            assert all(style.startswith(label) for style in styles)
            assert mode == "any" or content.startswith(label if mode == "within" else "nv")
    if mode not in ("nearest", "farthest"):
        assert run(sampler(mode=mode, seed=4), 60) != run(sampler(mode=mode), 60)


def test_every_picture_serves_once_before_any_serves_again():
    rows = run(sampler(), 100, {"mel": 0.5, "bcc": 0.5})
    for label, size in (("mel", 5), ("bcc", 4)):
        styles = [styles[0] for name, _, styles in rows if name == label]
        rounds = [styles[i : i + size] for i in range(0, 40, size)]
        assert all(len(set(one)) == size for one in rounds)
        assert len({tuple(one) for one in rounds}) > 1  # every round in an order of its own
    contents = [content for _, content, _ in rows]
    assert all(len(set(contents[i : i + 7])) == 7 for i in range(0, 98, 7))
    everything = [content for _, content, _ in run(sampler(mode="any"), 16)]
    assert len(set(everything)) >= 13  # a content that met itself gave way to the next


def test_within_a_class_content_and_style_both_go_round_without_meeting():
    rows = [sampler(mode="within").pair("mel", k, k) for k in range(50)]
    for first in range(0, 50, 5):
        turn = rows[first : first + 5]
        assert len({content for content, _ in turn}) == len({styles[0] for _, styles in turn}) == 5
    assert all(content != styles[0] for content, styles in rows)


@pytest.mark.parametrize("mode", ["nearest", "farthest"])
def test_distance_modes_rank_the_contents_as_brute_force_does(mode):
    table = sources()
    features = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    place = {name: i for i, name in enumerate(table["image_id"])}
    found = sampler(table, mode=mode, features=features)
    seen = {}
    for k in range(25):  # five rounds of the five styles
        content, (style,) = found.pair("mel", k, k)
        distance = {
            name: float(np.linalg.norm(features[place[name]].astype(float) - features[place[style]].astype(float)))
            for name in table["image_id"][table["label"] == "nv"]
        }
        ranking = sorted(distance, key=distance.get, reverse=mode == "farthest")
        assert content == ranking[seen.get(style, 0)]
        seen[style] = seen.get(style, 0) + 1
    assert set(seen.values()) == {5}


def test_a_style_of_the_content_class_is_not_its_own_content():
    rows = run(sampler(sources(nv=2, mel=2)), 200)
    assert {label for label, _, _ in rows} == {"nv", "mel"}
    assert all(content not in styles for _, content, styles in rows)


def test_bad_pairs_are_one_sentence():
    with pytest.raises(BadInput, match="pairs is 'random'; it must be one of published"):
        sampler(mode="random")
    with pytest.raises(BadInput, match="content_class is 'wart'"):
        sampler(content_class="wart")
    with pytest.raises(BadInput, match="needs one row of features"):
        sampler(mode="nearest")
    with pytest.raises(BadInput, match="needs one row of features"):
        sampler(mode="farthest", features=np.zeros((3, 2)))
    with pytest.raises(BadInput, match="No source has the label 'wart'"):
        sampler().pair("wart", 0, 0)
    with pytest.raises(BadInput, match="Class 'bcc' has 4 pictures; 5 styles"):
        sampler(n_styles=5).pair("bcc", 0, 0)
    lonely = sources(nv=1, mel=3)
    for options in ({"mode": "published"}, {"mode": "within"}, {"mode": "nearest", "features": np.zeros((4, 2))}):
        with pytest.raises(BadInput, match="nv0 would be its own style"):
            sampler(lonely, **options).pair("nv", 0, 0)
