import numpy as np
import pandas as pd
import pytest

from stda import BadInput
from stda.show import figures, telltale


def test_places_are_drawn_on_one_scale_with_numbers_while_they_are_few():
    few, many = np.linspace(0.5, 1, 6).reshape(2, 3), np.full((9, 9), 0.7)
    fig = telltale.told_by_place_figure({"real": few, "wgan": many})
    first, second = fig.axes
    assert [ax.get_title() for ax in (first, second)] == ["real", "wgan"]
    assert [text.get_text() for text in first.texts] == ["0.50", "0.60", "0.70", "0.80", "0.90", "1.00"]
    assert not second.texts
    assert {ax.collections[0].get_clim() for ax in (first, second)} == {(0.5, 1.0)}


def test_evidence_has_one_scale_for_all_images(monkeypatch):
    seen = []
    monkeypatch.setattr(telltale, "show", lambda fig, **said: seen.append(fig))
    monkeypatch.setattr(telltale, "mosaic", lambda cells, **said: cells)
    maps = np.stack([np.full((2, 2), 4.0), np.full((2, 2), 1.0), np.full((2, 2), -4.0)])
    images = np.full((3, 8, 8, 3), 7, dtype=np.uint8)
    telltale.evidence_maps(images, maps, alt="three pictures and maps of them")
    strong, weak, against = (cell[0, 0].astype(int) for cell in seen[0][3:])
    assert (seen[0][:3] == 7).all()
    assert strong[0] > strong[2] + 60  # red
    assert against[2] > against[0] + 60  # blue
    assert abs(weak - 255).sum() < abs(strong - 255).sum()


def test_spectra_have_a_line_per_set_and_real_ones_are_grey():
    rows = {"waves": [1, 2], "ratio": [1.0, 0.1], "low": [0.9, 0.05], "high": [1.1, 0.2]}
    table = pd.concat([pd.DataFrame(rows).assign(set=name) for name in ("real (other half)", "wgan")])
    axes = telltale.spectra_figure(table).axes[0]
    lines = {line.get_label(): line.get_color() for line in axes.lines[:2]}
    assert list(lines) == ["real (other half)", "wgan"]
    assert lines["real (other half)"] == figures.GREY
    assert axes.get_yscale() == "log"


def test_unusable_input_is_refused_in_one_sentence():
    with pytest.raises(BadInput, match="lacks"):
        telltale.spectra_figure(pd.DataFrame({"set": ["x"]}))
    with pytest.raises(BadInput, match="each of 2 images"):
        telltale.evidence_maps(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 2, 2)), alt="nothing to be seen")
