"""Style transfer as a generator: pairs, pseudo-labels, regeneration, what it refuses."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stda import BadInput, generators
from stda import encoders as E
from stda.compute import Compute
from stda.generators.base import Unfinished
from stda.generators.nst import StyleTransfer
from stda.generators.style.studio import PairFailed, Studio
from stda.images import ImageSet

SHARED = Path(__file__).resolve().parents[2] / "../shared"
FLOAT32 = Compute(torch.device("cpu"), "float32", 1)
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}
COUNTS = {"blue": 9, "green": 3, "red": 4}


def resize(images, size):
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), Image.BOX)) for image in images])


def large_pictures(names):
    """The 'originals', 32 px: noisy patches in the colour of their class."""
    found = np.zeros((len(names), 32, 32, 3), np.uint8)
    for i, name in enumerate(names):
        label, number = name.split("-")
        random = np.random.default_rng(int(number))
        colour = np.array(COLOURS[label]) + random.normal(0, 25, (8, 8, 3))
        found[i] = np.kron(colour.clip(0, 255), np.ones((4, 4, 1)))
    return found


def make_set(split="train"):
    names = [f"{label}-{i}" for label, n in COUNTS.items() for i in range(n)]
    table = pd.DataFrame({"image_id": names, "label": [name.split("-")[0] for name in names], "split": split})
    return ImageSet(resize(large_pictures(names), 16), table)


@pytest.fixture(scope="module")
def labeller():
    return E.train_in_domain(make_set(), steps=15, seed=0, compute=FLOAT32, batch_size=16)


def make(network, **knobs):
    parts = {"encoder": network, "pictures": large_pictures, "resize": resize, "labeller": network}
    return StyleTransfer(**{**parts, "compute": FLOAT32, **knobs})


@pytest.fixture(scope="module")
def fitted(labeller):
    generator = make(labeller)
    generator.fit(make_set(), seed=1)
    return generator


@pytest.fixture(scope="module")
def made(fitted):
    return fitted.generate(["green", "red", "green", "red", "green", "green"], seed=5)


def test_table_says_where_images_come_from(made):
    table = made.table
    assert made.images.shape == (6, 16, 16, 3)
    assert set(table["split"]) == {"synthetic"}
    assert set(table["generator"]) == {"nst"}
    assert list(table["asked_label"]) == ["green", "red", "green", "red", "green", "green"]
    content, style = zip(*(text.split("|") for text in table["source_ids"]), strict=True)
    assert {name.split("-")[0] for name in content} == {"blue"}  # the largest class
    assert [name.split("-")[0] for name in style] == list(table["asked_label"])
    assert len({name for name in style if name.startswith("green")}) == 3  # every one once before any serves again
    assert len(set(content)) == 6
    assert np.isfinite(table[["loss_content", "loss_style", "loss_tv"]]).all(axis=None)


def test_pseudo_labels_are_the_labellers(made, labeller):
    probabilities = labeller.classify(made, FLOAT32)
    assert list(made.table["label"]) == [labeller.classes[i] for i in probabilities.argmax(axis=1)]
    assert list(made.table["pseudo_label"]) == list(made.table["label"])
    np.testing.assert_allclose(made.table["label_confidence"], probabilities.max(axis=1), rtol=1e-4)


def test_style_labels_keep_the_asked_class(fitted, labeller, made):
    generator = make(labeller, labels="style")
    generator.fit(make_set(), seed=1)
    styled = generator.generate(["green", "red"], seed=5)
    assert list(styled.table["label"]) == ["green", "red"]
    assert np.array_equal(styled.images, made.images[:2])
    assert list(styled.table["pseudo_label"]) == list(made.table["label"][:2])
    alone = make(labeller, labels="style", labeller=None)
    alone.fit(make_set(), seed=1)
    assert list(alone.generate(["red"], seed=5).table["label_confidence"]) == [1.0]


def test_images_take_the_colour_of_their_style(made):
    asked = np.array([COLOURS[label] for label in made.table["asked_label"]], float)
    mean = made.images.mean(axis=(1, 2))
    moved = np.linalg.norm(mean - COLOURS["blue"], axis=1)
    assert (np.linalg.norm(mean - asked, axis=1) < moved).all()


def test_every_image_can_be_made_alone(fitted, made, labeller):
    rows = made.table.iloc[[4, 1]]
    assert np.array_equal(fitted.regenerate(rows), made.images[[4, 1]])
    fresh = make(labeller)  # nothing cached
    fresh.fit(make_set(), seed=1)
    assert np.array_equal(fresh.regenerate(made.table.iloc[[5]]), made.images[[5]])
    shorter = fitted.generate(["green", "red"], seed=5)
    assert np.array_equal(shorter.images, made.images[:2])
    assert list(shorter.table["source_ids"]) == list(made.table["source_ids"][:2])
    assert list(fitted.generate(["green", "red"], seed=6).table["source_ids"]) != list(shorter.table["source_ids"])
    assert fitted.regenerate(made.table.iloc[:0]).shape == (0, 16, 16, 3)
    with pytest.raises(BadInput, match="no pictures of this generator"):
        fitted.regenerate(made.table.iloc[[0]].assign(source_ids="blue-1|red-99"))


def test_noise_start_follows_the_image_seed(labeller):
    generator = make(labeller, start="noise", labels="style")
    generator.fit(make_set(), seed=1)
    noisy = generator.generate(["red", "red"], seed=2)
    assert np.array_equal(generator.regenerate(noisy.table.iloc[[1]]), noisy.images[[1]])
    other = noisy.table.iloc[[1]].assign(image_seed=7)
    assert not np.array_equal(generator.regenerate(other), noisy.images[[1]])


def test_saved_and_opened_again(fitted, made, labeller, tmp_path):
    fitted.save(tmp_path)
    parts = {"encoder": labeller, "labeller": labeller, "pictures": large_pictures, "resize": resize}
    opened = generators.load(tmp_path, **parts, compute=FLOAT32)
    assert isinstance(opened, StyleTransfer)
    assert opened.knobs == fitted.knobs
    assert np.array_equal(opened.regenerate(made.table.iloc[[2]]), made.images[[2]])
    again = opened.generate(["green", "red"], seed=5)
    pd.testing.assert_frame_equal(again.table, made.table.iloc[:2])
    other = E.train_in_domain(make_set(), steps=2, seed=8, compute=FLOAT32, batch_size=8)
    with pytest.raises(BadInput, match="was made with the encoder"):
        generators.load(tmp_path, **{**parts, "encoder": other}, compute=FLOAT32)
    with pytest.raises(BadInput, match="given none"):
        generators.load(tmp_path, **{**parts, "labeller": None}, compute=FLOAT32)


def test_content_class_and_layers(labeller):
    generator = make(labeller, content_class="red")
    assert list(generator.fit(make_set(), seed=1)["step"]) == []  # nothing is trained
    assert list(generator.layers["layer"]) == list(labeller.style_layers)
    assert generator.layers["role"].tolist() == ["style", "style", "style", "both"]
    made = generator.generate(["red"] * 5, seed=0).table
    pairs = [text.split("|") for text in made["source_ids"]]
    assert all(content.startswith("red") and content != style for content, style in pairs)
    assert set(made["content_label"]) == {"red"}


def test_a_class_of_one_picture_in_its_own_class(labeller):
    single = make_set().select(slice(0, 13))  # blue 9, green 3, red 1
    network = E.train_in_domain(single, steps=2, seed=0, compute=FLOAT32, batch_size=8)
    generator = make(network, content_class="red")
    generator.fit(single, seed=0)
    with pytest.raises(BadInput, match="own style"):
        generator.generate(["red"], seed=0)


def test_a_loss_that_is_no_number_keeps_what_is_made(labeller, monkeypatch):
    generator = make(labeller)
    generator.fit(make_set(), seed=1)
    original, calls = Studio.restyle, []

    def third_fails(self, pairs, wanted):
        calls.append(1)
        if len(calls) == 3:
            raise PairFailed(f"the loss of content {pairs[0].content} is not finite")
        return original(self, pairs, wanted)

    monkeypatch.setattr(Studio, "restyle", third_fails)
    with pytest.raises(Unfinished, match=r"content blue-\d+ is not finite") as caught:
        generator.generate(["green"] * 4, seed=5)
    assert len(caught.value.finished) == 2
    assert caught.value.finished.table["pseudo_label"].notna().all()
    calls[:] = [1, 1]
    with pytest.raises(Unfinished) as caught:
        generator.generate(["green"], seed=5)
    assert len(caught.value.finished) == 0


def test_a_real_loss_that_is_no_number_names_its_pair(labeller):
    generator = make(labeller, style_weight=1e38)
    generator.fit(make_set(), seed=1)
    with pytest.raises(Unfinished, match=r"content blue-\d+ with style red-\d+ is not finite"):
        generator.generate(["red"], seed=5)


def test_callback_tells_progress(fitted):
    records = []
    fitted.generate(["red", "green"], seed=0, callback=records.append)
    assert [(r["step"], r["steps"]) for r in records] == [(1, 2), (2, 2)]
    assert records[0]["grid"].shape == (96, 3 * 96, 3)


def masks(names):
    """A 16 px square in the middle of the 32 px originals."""
    found = np.zeros((len(names), 32, 32), np.uint8)
    found[:, 8:24, 8:24] = 255
    return found


SMALL = {"style_size": 32, "iterations": 1}


def same(a, b):
    return np.array_equal(a.images, b.images)


@pytest.mark.parametrize(
    "knobs",
    [
        {"optimiser": "adam"},
        {"coarse_to_fine": True},
        {"content_scaling": "size", "content_weight": 1e4},
        {"variant": "improved"},
        {"variant": "improved", "chaining": "tool"},
        {"chaining": "adjacent"},
        {"pooling": "average", "padding": "reflect"},
        {"colour": "ycbcr"},
        {"colour": "histogram"},
        {"style_mask": "lesion"},
        {"regions": True},
        {"style_weights": [0.5, 0.5]},
        {"pairs": "any"},
        {"pairs": "within"},
        {"pairs": "nearest"},
        {"pairs": "farthest"},
        {"start": "noise"},
        {"start": "grey"},
    ],
    ids=str,
)
def test_every_knob_makes_other_images_that_can_be_made_again(fitted, labeller, knobs):
    generator = make(labeller, masks=masks, **SMALL, **knobs)
    generator.fit(make_set(), seed=1)
    made = generator.generate(["green", "red"], seed=5)
    assert not same(made, fitted.generate(["green", "red"], seed=5))
    assert np.array_equal(generator.regenerate(made.table.iloc[[1]]), made.images[[1]])
    assert made.table["source_ids"].str.count(r"\|").eq(len(generator.knobs.style_weights)).all()


def test_early_stop_saves_evaluations(labeller):
    lazy = make(labeller, **{**SMALL, "iterations": 6, "early_stop": 90.0})
    lazy.fit(make_set(), seed=1)
    full = lazy.vary(early_stop=0.0)
    lazy = lazy.vary()
    assert (
        lazy.losses(lazy.generate(["red"], seed=5))["total"][0]
        > full.losses(full.generate(["red"], seed=5))["total"][0]
    )


def test_skin_stays_bit_for_bit(labeller):
    generator = make(labeller, masks=masks, **SMALL, content_mask="lesion")
    generator.fit(make_set(), seed=1)
    image = generator.vary().generate(["red"], seed=5)
    content = large_pictures([image.table["source_ids"].iloc[0].split("|")[0]])[0]
    outside = masks(["x"])[0] == 0
    assert np.array_equal(image.images[0][outside], content[outside])
    assert not np.array_equal(image.images[0], content)


def test_margin_is_cut_off_and_the_rest_enlarged(labeller):
    generator = make(
        labeller,
        style_size=48,
        margin=8,
        pictures=lambda names: large_pictures(names).repeat(2, 1).repeat(2, 2)[:, :48, :48],
    )
    generator.fit(make_set(), seed=1)
    generator.output_size = 0
    assert generator.generate(["red"], seed=0).images.shape == (1, 32, 32, 3)


def test_strengths_of_a_pair_share_its_path(labeller):
    generator = make(labeller, **{**SMALL, "iterations": 3, "save_at": [1, 3]})
    generator.fit(make_set(), seed=1)
    made = generator.generate(["red"] * 4, seed=5)
    assert list(made.table["iteration"]) == [1, 3, 1, 3]
    assert made.table["source_ids"].nunique() == made.table["image_seed"].nunique() == 2
    alone = generator.vary(save_at=[], iterations=1)
    alone.output_size = 16
    assert np.array_equal(alone.generate(["red"] * 2, seed=5).images, made.images[[0, 2]])
    assert np.array_equal(generator.regenerate(made.table.iloc[[2]]), made.images[[2]])
    uneven = generator.generate(["green"] * 3 + ["red"] * 3, seed=5).table
    assert [source == next_one for source, next_one in itertools.pairwise(uneven["source_ids"])] == [
        *(True, False, False, True, False)
    ]


@pytest.mark.parametrize("knobs", [{"optimiser": "adam"}, {"coarse_to_fine": True}], ids=str)
def test_a_strength_is_the_same_without_the_later_ones(labeller, knobs):
    generator = make(labeller, **{**SMALL, "iterations": 2, "save_at": [1, 2]}, **knobs)
    generator.fit(make_set(), seed=1)
    made = generator.generate(["red"] * 2, seed=5)
    for row in (0, 1):
        assert np.array_equal(generator.regenerate(made.table.iloc[[row]]), made.images[[row]])


def test_one_failure_in_a_batch_costs_no_other(labeller, monkeypatch):
    generator = make(labeller, **SMALL, batch_size=3)
    generator.fit(make_set(), seed=1)
    rows = generator.plan(0, 3, shares={"red": 1.0}, seed=5)
    whole, original = generator.make(rows), Studio._optimise

    def second_fails(self, pairs, shots, wanted):
        for iteration, x, losses, failed in original(self, pairs, shots, wanted):
            yield iteration, x, losses, {**failed, 1: 7}

    monkeypatch.setattr(Studio, "_optimise", second_fails)
    with pytest.raises(Unfinished, match="is not finite") as caught:
        generator.make(rows)
    assert np.array_equal(caught.value.finished.images, whole.images[:1])
    assert np.array_equal(generator.make(rows.iloc[2:]).images, whole.images[2:])


def test_another_start_file_is_noticed(labeller, tmp_path):
    path = tmp_path / "start.png"
    Image.fromarray(large_pictures(["red-1"])[0]).save(path)
    generator = make(labeller, **SMALL, start="file", start_file=str(path))
    generator.fit(make_set(), seed=1)
    generator.save(tmp_path)
    parts = {"encoder": labeller, "labeller": labeller, "pictures": large_pictures, "resize": resize}
    generators.load(tmp_path, **parts, compute=FLOAT32)
    Image.fromarray(large_pictures(["blue-1"])[0]).save(path)
    with pytest.raises(BadInput, match="is not the picture"):
        generators.load(tmp_path, **parts, compute=FLOAT32)


def test_pictures_of_any_shape(labeller):
    def wide(names):
        return [np.concatenate([picture, picture[:, :10]], axis=1) for picture in large_pictures(names)]

    generator = make(labeller, **SMALL, pictures=wide, aspect="keep")
    generator.fit(make_set(), seed=1)
    assert generator.generate(["red"], seed=0).images.shape == (1, 16, 16, 3)
    generator.output_size = 0
    assert generator.generate(["red"], seed=0).images.shape == (1, 32, 42, 3)


def test_batches_travel_with_their_rows(labeller):
    generator = make(labeller, **SMALL, batch_size=2)
    generator.fit(make_set(), seed=1)
    made = generator.generate(["red", "red", "green"], seed=5)
    assert list(made.table["batch"].str.count(";")) == [1, 1, 0]
    assert np.array_equal(generator.regenerate(made.table.iloc[[1]]), made.images[[1]])


def test_planned_rows_can_be_entered_anywhere(labeller):
    generator = make(labeller, **{**SMALL, "iterations": 2, "save_at": [1, 2], "batch_size": 2})
    generator.fit(make_set(), seed=1)
    shares = {"green": 0.5, "red": 0.5}
    whole = generator.plan(0, 21, shares=shares, seed=9)
    for start, stop in ((0, 4), (5, 6), (13, 21)):
        part = generator.plan(start, stop, shares=shares, seed=9)
        pd.testing.assert_frame_equal(part, whole.iloc[start:stop].reset_index(drop=True))
    made = generator.make(whole.iloc[:4])
    assert np.array_equal(generator.regenerate(whole.iloc[[3]]), made.images[[3]])
    assert {"pseudo_label", "p_red", "label_confidence", "loss_style"} <= set(made.table)
    assert set(made.table["weights"]) == {"content 0.025, style 1, tv 8.5e-05"}


def test_feed_forward_network(labeller, tmp_path):
    generator = make(labeller, style_size=32, engine="feedforward", feedforward_batch=2)
    assert len(generator.fit(make_set(), steps=3, seed=1)) == 3
    made = generator.generate(["red", "green"], seed=5)
    assert list(made.table["iteration"]) == [0, 0]
    generator.save(tmp_path)
    parts = {"encoder": labeller, "labeller": labeller, "pictures": large_pictures, "resize": resize}
    opened = generators.load(tmp_path, **parts, compute=FLOAT32)
    assert np.array_equal(opened.regenerate(made.table.iloc[[1]]), made.images[[1]])


def test_losses_judge_any_image(fitted):
    own = fitted.vary(style_size=32)
    made = own.generate(["red"], seed=5)
    found = own.losses(made)
    start = own.losses(ImageSet(large_pictures([made.table["source_ids"][0].split("|")[0]]), made.table))
    assert start["content"][0] == pytest.approx(0, abs=1e-3)  # the content picture itself
    recorded = made.table[["loss_content", "loss_style", "loss_tv"]].sum(axis=1)[0]
    assert found["total"][0] < 0.5 * start["total"][0]
    assert found["total"][0] > 0.95 * recorded  # rounded and clipped to 0..255


def test_what_it_refuses(labeller, fitted):
    with pytest.raises(BadInput, match="train fold only"):
        make(labeller).fit(ImageSet.concat(make_set(), make_set("val")), seed=0)
    with pytest.raises(BadInput, match="need a labeller"):
        make(labeller, labeller=None)
    with pytest.raises(BadInput, match="labels is 'soft'"):
        make(labeller, labels="soft")
    with pytest.raises(BadInput, match="start_file belong together"):
        make(labeller, start="file")
    with pytest.raises(BadInput, match="cannot be read as a picture"):
        make(labeller, start="file", start_file="/nowhere.png")
    with pytest.raises(BadInput, match=r"style_weight is -1\.0"):
        make(labeller, style_weight=-1.0)
    with pytest.raises(BadInput, match="'iteratons' is not a parameter; did you mean 'iterations'"):
        make(labeller, iteratons=3)
    with pytest.raises(BadInput, match="save_at is"):
        make(labeller, iterations=2, save_at=[1, 3])
    with pytest.raises(BadInput, match="need a source with lesion masks"):
        make(labeller, content_mask="lesion")
    with pytest.raises(BadInput, match="has not been trained"):
        fitted.vary(engine="feedforward").generate(["red"], seed=0)
    with pytest.raises(BadInput, match="at least one style"):
        fitted.regenerate(fitted.generate(["red"], seed=0).table.assign(source_ids="blue-1"))
    with pytest.raises(BadInput, match="content_class is 'pink'"):
        make(labeller, content_class="pink").fit(make_set(), seed=0)
    with pytest.raises(BadInput, match="no layer"):
        make(labeller, content_layer="conv9_1").fit(make_set(), seed=0)
    with pytest.raises(BadInput, match="labeller knows"):
        make(labeller).fit(make_set().select(label=["blue", "red"]), seed=0)
    with pytest.raises(BadInput, match="must be uint8"):
        make(labeller, pictures=lambda names: np.zeros((len(names), 8, 8), np.uint8)).fit(make_set(), seed=0)
    with pytest.raises(BadInput, match="call fit"):
        make(labeller).generate(["red"], seed=0)
    with pytest.raises(BadInput, match=r"No train picture has the label \['pink'\]"):
        fitted.generate(["pink"], seed=0)
    assert len(fitted.generate([], seed=0)) == 0


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="../shared (real pictures and weights) is not here")
def test_real_lesions_with_squeezenet():
    weights = SHARED / "weights/squeezenet1_0_imagenet_deepcompression.pth"
    encoder = E.load_encoder("squeezenet1_0", weights=str(weights))
    folder = SHARED / "data/ham10000"
    table = pd.read_csv(folder / "labels.csv", dtype=str).rename(columns={"dx": "label"})
    table = table.groupby("label").head(3)[["image_id", "label"]].query("label in ['nv', 'vasc']")

    def originals(names):
        opened = (Image.open(folder / "images" / f"{name}.jpg").crop((25, 0, 175, 150)) for name in names)
        return np.stack([np.asarray(image.resize((96, 96), Image.BICUBIC)) for image in opened])

    train = ImageSet(resize(originals(table["image_id"]), 32), table.assign(split="train"))
    generator = StyleTransfer(encoder=encoder, pictures=originals, resize=resize, labels="style", compute=FLOAT32)
    generator.fit(train, seed=0)
    made = generator.generate(["vasc"], seed=0)
    content, style = originals(made.table["source_ids"].iloc[0].split("|")).mean(axis=(1, 2))
    found = made.images.mean(axis=(0, 1, 2))
    assert np.linalg.norm(found - style) < 0.8 * np.linalg.norm(content - style)
