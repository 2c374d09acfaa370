import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stda import BadInput, explain
from stda.data import artefacts
from stda.images import ImageSet


def pictures(n, size=32, level=140):
    table = pd.DataFrame(
        {"image_id": [f"i{k}" for k in range(n)], "group": [f"g{k // 2}" for k in range(n)], "label": "mel"}
    )
    table = table.assign(split="test")
    return ImageSet(np.full((n, size, size, 3), level, np.uint8), table)


def quarter(n, size=8):
    """Masks whose upper left quarter is the lesion."""
    masks = np.zeros((n, size, size), np.uint8)
    masks[:, : size // 2, : size // 2] = 255
    return masks


class TestFocusTable:
    def test_shares_of_known_maps(self):
        n, table = 4, pictures(4).table
        maps = np.zeros((n, 3, 8, 8))
        maps[0] = 1.0  # evenly spread
        maps[1, :, 1, 1] = 2.0  # inside only
        maps[2, :, 7, 7] = 0.5  # outside only
        maps[3, 0, 0, 0], maps[3, 0, 7, 7] = 3.0, 1.0  # three quarters inside
        found = explain.focus_table({"a": maps}, quarter(n), table)
        assert found.columns.tolist() == ["method", "image_id", "group", "label", "inside", "area", "gain"]
        assert found["inside"].tolist() == [0.25, 1.0, 0.0, 0.75]
        assert found["area"].eq(0.25).all()
        assert found["gain"].tolist() == [0.0, 0.75, -0.25, 0.5]
        assert found["image_id"].tolist() == table["image_id"].tolist()

    def test_channels_are_summed_before_the_sign_is_taken(self):
        maps = np.zeros((1, 3, 8, 8), np.float32)
        maps[0, :, 0, 0] = 5, -5, 1  # for the class by 1
        maps[0, :, 7, 7] = 1, 1, 1
        maps[0, :, 0, 1] = -100  # against it: does not count
        found = explain.focus_table({"a": torch.from_numpy(maps), "b": maps.sum(axis=1)}, quarter(1), pictures(1).table)
        assert found["inside"].tolist() == [0.25, 0.25]
        assert found["method"].tolist() == ["a", "b"]

    def test_against_a_loop_over_pixels(self):
        rng = np.random.default_rng(0)
        maps, masks = rng.normal(size=(5, 3, 8, 8)), (255 * (rng.random((5, 8, 8)) < 0.3)).astype(np.uint8)
        found = explain.focus_table({"a": maps}, masks, pictures(5).table)
        for k in range(5):
            held = total = 0.0
            for i in range(8):
                for j in range(8):
                    relevance = max(0.0, float(maps[k, :, i, j].sum()))
                    total += relevance
                    held += relevance if masks[k, i, j] == 255 else 0.0
            assert found["inside"][k] == pytest.approx(held / total, rel=1e-12)
            assert found["area"][k] == np.count_nonzero(masks[k]) / 64

    def test_a_map_without_positive_relevance_has_no_share(self):
        maps = np.stack([np.full((8, 8), -1.0), np.zeros((8, 8)), np.ones((8, 8))])
        found = explain.focus_table({"a": maps}, quarter(3), pictures(3).table)
        assert found["inside"].isna().tolist() == [True, True, False]
        assert found["gain"].isna().tolist() == [True, True, False]
        assert found["area"].eq(0.25).all()

    def test_useless_masks_are_named(self):
        masks = quarter(8)
        masks[1], masks[3] = 0, 255
        assert explain.usable_masks(masks).tolist() == [True, False, True, False, True, True, True, True]
        with pytest.raises(BadInput, match=r"masks of i1, i3 are empty .* leave these images out"):
            explain.focus_table({"a": np.ones((8, 8, 8))}, masks, pictures(8).table)
        with pytest.raises(BadInput, match="i4 and 3 more are"):
            explain.focus_table({"a": np.ones((8, 8, 8))}, np.zeros_like(masks), pictures(8).table)
        kept = explain.usable_masks(masks)
        found = explain.focus_table({"a": np.ones((6, 8, 8))}, masks[kept], pictures(8).table[kept])
        assert found["image_id"].tolist() == ["i0", "i2", "i4", "i5", "i6", "i7"]

    def test_what_does_not_fit_is_one_sentence(self):
        table = pictures(2).table
        with pytest.raises(BadInput, match="must agree"):
            explain.focus_table({"a": np.ones((2, 3, 4, 4))}, quarter(2), table)
        with pytest.raises(BadInput, match="read one for each"):
            explain.focus_table({"a": np.ones((2, 3, 8, 8))}, quarter(1), table)
        with pytest.raises(BadInput, match="not finite"):
            explain.focus_table({"a": np.full((2, 8, 8), np.nan)}, quarter(2), table)

    def test_no_method_is_an_empty_table(self):
        found = explain.focus_table({}, quarter(2), pictures(2).table)
        assert len(found) == 0
        assert found.columns.tolist()[-1] == "gain"


class Dark(nn.Module):
    """Logit 0: how dark the pixels below mid-grey are, and ``glance`` times the picture; logit 1 is a constant."""

    def __init__(self, *, dark=1.0, glance=0.0):
        super().__init__()
        self.dark, self.glance = nn.Parameter(torch.tensor(dark)), nn.Parameter(torch.tensor(glance))

    def forward(self, x):
        first = (self.dark * torch.relu(-x) + self.glance * x).sum(dim=(1, 2, 3))
        return torch.stack([first, torch.full_like(first, 1e-3)], dim=1)


METHOD = "integrated_gradients"  # from mid-grey: exactly x times the slope on its side, for this model


class TestArtefactTable:
    images = pictures(6)  # a little brighter than mid-grey
    drawn = artefacts.insert(images.images, "ruler", seed=3)  # marks are darker than it
    region = np.abs(drawn.astype(int) - 140).max(axis=-1) > 8

    def test_a_classifier_that_looks_at_the_ruler_gives_it_all_relevance(self):
        found = explain.artefact_table(Dark(), self.images, METHOD, {"ruler": self.drawn}, target=0)
        assert found.columns.tolist() == [
            "method", "artefact", "image_id", "group", "label", "inside", "before", "area", "gain", "drawn_in"
        ]  # fmt: skip
        assert found["inside"].tolist() == [1.0] * 6
        assert found["before"].isna().all()  # the clean pictures have nothing dark
        assert found["area"].to_numpy() == pytest.approx(self.region.mean(axis=(1, 2)))
        assert found["gain"].to_numpy() == pytest.approx(1 - self.region.mean(axis=(1, 2)))

    def test_one_that_glances_at_the_rest_too(self):
        model = Dark(dark=1.0, glance=0.5)
        found = explain.artefact_table(model, self.images, METHOD, {"ruler": self.drawn}, target=0)
        x = self.drawn.astype(float) / 127.5 - 1
        positive = np.maximum((np.maximum(-x, 0) + 0.5 * x).sum(axis=-1), 0)
        share = (positive * self.region).sum(axis=(1, 2)) / positive.sum(axis=(1, 2))
        assert found["inside"].to_numpy() == pytest.approx(share, rel=1e-5)
        assert found["before"].to_numpy() == pytest.approx(self.region.mean(axis=(1, 2)), rel=1e-5)  # evenly spread
        assert found["drawn_in"].to_numpy() == pytest.approx(share - self.region.mean(axis=(1, 2)), abs=1e-6)

    def test_one_that_only_looks_at_what_is_bright_turns_away(self):
        model = Dark(dark=0.0, glance=1.0)
        found = explain.artefact_table(model, self.images, METHOD, {"ruler": self.drawn}, target=0)
        assert (found["drawn_in"] < 0).all()

    def test_the_class_is_that_of_the_clean_picture(self):
        assert explain.targets_of(Dark(), self.images.as_tensor()).tolist() == [1] * 6
        assert explain.targets_of(Dark(), ImageSet(self.drawn, self.images.table).as_tensor()).tolist() == [0] * 6
        found = explain.artefact_table(Dark(), self.images, METHOD, {"ruler": self.drawn})
        assert found["inside"].isna().all()  # the constant logit owes nothing to any pixel

    def test_where_nothing_or_everything_is_drawn_there_is_no_share(self):
        drawn = self.images.images.copy()
        drawn[1], drawn[2, :8], drawn[3] = 0, 132, 131  # eight levels are not seen, nine are
        model = Dark(dark=1.0, glance=0.5)
        found = explain.artefact_table(model, self.images, METHOD, {"dark": drawn}, target=0)
        assert found["area"].tolist() == [0, 1, 0, 1, 0, 0]
        assert found[["inside", "before", "gain", "drawn_in"]].isna().all(axis=None)
        finer = explain.artefact_table(model, self.images, METHOD, {"dark": drawn}, target=0, visible=7)
        assert finer["area"].tolist() == [0, 1, 0.25, 1, 0, 0]
        assert finer["inside"].notna().tolist() == [False, False, True, False, False, False]

    def test_every_method_and_artefact_with_its_knobs(self):
        drawn = {kind: artefacts.insert(self.images.images, kind, seed=1) for kind in ("hair", "vignette")}
        model = Dark(dark=1.0, glance=0.5)
        found = explain.artefact_table(model, self.images, ["gradient", METHOD], drawn, knobs={METHOD: {"n_steps": 2}})
        assert found.groupby(["method", "artefact"], sort=False).size().to_dict() == {
            (method, kind): 6 for method in ("gradient", METHOD) for kind in ("hair", "vignette")
        }
        with pytest.raises(BadInput, match="no knob 'steps'"):
            explain.artefact_table(model, self.images, METHOD, drawn, knobs={METHOD: {"steps": 2}})
        assert len(explain.artefact_table(model, self.images, [], drawn)) == 0

    def test_other_pictures_are_one_sentence(self):
        with pytest.raises(BadInput, match=r"The pictures with hair are uint8 \(6, 8, 8, 3\)"):
            explain.artefact_table(Dark(), self.images, METHOD, {"hair": self.drawn[:, :8, :8]})
