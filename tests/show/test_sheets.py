import numpy as np
import pandas as pd
import pytest

from stda import BadInput, show
from stda.images import ImageSet
from stda.show import sheets

ALT = "an alternative text that is long enough"


@pytest.fixture
def shown(monkeypatch):
    """What would be drawn as a grid: images and keyword arguments."""
    calls = []
    monkeypatch.setattr(sheets, "grid", lambda images, **kw: calls.append((images, kw)))
    return calls


def make(labels):
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return ImageSet(pixels, pd.DataFrame({"image_id": [str(i) for i in range(len(labels))], "label": labels}))


def test_class_sheet_has_a_row_per_class_largest_first_and_ends_in_white(shown):
    show.class_sheet(make(["b", "a", "b", "b"]), per_class=2, alt=ALT)
    images, kw = shown[0]
    assert images[:, 0, 0, 0].tolist() == [0, 2, 1, 255]
    assert kw["row_labels"] == ["b (3)", "a (1)"]


def test_wanted_counts_lists_every_class_of_the_train_fold():
    table = show.wanted_counts(make(["b", "a", "b"]), ["a", "a"])
    assert table.to_dict("list") == {"class": ["b", "a"], "real": [2, 1], "synthetic": [0, 2]}


def test_watch_passes_records_on_and_keeps_grids(shown):
    seen = []
    watch = show.Watch(seen.append)
    for step in range(1, 11):
        watch({"step": step, "steps": 10, "grid": np.full((4, 4, 3), step, np.uint8)} if step % 2 else {"step": step})
    assert len(seen) == 10
    show.training_grids(watch, alt=ALT, n=3)
    images, kw = shown[0]
    assert images[:, 0, 0, 0].tolist() == [1, 5, 9]
    assert kw["titles"] == ["step 1", "step 5", "step 9"]


def test_several_models_are_shown_by_their_last_grid(shown):
    watch = show.Watch(lambda record: None)
    for step, model in ((1, "a"), (2, "a"), (3, "b")):
        watch({"step": step, "model": model, "grid": np.full((4, 4, 3), step, np.uint8)})
    show.training_grids(watch, alt=ALT)
    images, kw = shown[0]
    assert images[:, 0, 0, 0].tolist() == [2, 3]
    assert kw["row_labels"] == ["a", "b"]


def test_confusion_shows_shares_of_the_true_class(monkeypatch):
    seen = []
    monkeypatch.setattr(sheets, "recall_heatmap", lambda table, **kw: seen.append(table))
    table = pd.DataFrame({"label": ["a", "a", "a", "b"], "predicted": ["a", "a", "b", "c"]})
    show.confusion(table, ["a", "b", "c"], alt=ALT)
    np.testing.assert_allclose(seen[0].loc["a"], [2 / 3, 1 / 3, 0])
    assert seen[0].loc["c"].isna().all()


def ladder_pool():
    rows = [("c|s", 30, "mel"), ("d|s", 5, "nv"), ("c|s", 5, "nv"), ("e|s", 5, "nv"), ("d|s", 30, "nv")]
    table = pd.DataFrame(rows, columns=["source_ids", "iteration", "pseudo_label"])
    table = table.assign(image_id=[str(i) for i in range(5)], label=table["pseudo_label"])
    pixels = np.arange(10, 15, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return ImageSet(pixels, table)


def ladder_sources():
    table = pd.DataFrame({"image_id": list("cdes"), "label": ["nv", "nv", "nv", "mel"]})
    return ImageSet(np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8), table)


def test_ladder_has_content_strengths_in_order_and_style(shown):
    show.ladder(ladder_pool(), ladder_sources(), alt=ALT)
    images, kw = shown[0]
    # the pair (e, s) was not kept at every strength and is left out
    assert images[:, 0, 0, 0].tolist() == [0, 12, 10, 3, 1, 11, 14, 3]
    assert kw["columns"] == 4
    assert kw["titles"][:4] == ["content\nnv", "iteration 5\nseen as nv", "iteration 30\nseen as mel", "style\nmel"]
    show.ladder(ladder_pool(), ladder_sources(), alt=ALT, n=1)
    assert len(shown[1][0]) == 4


def test_a_ladder_that_cannot_be_drawn_is_one_sentence(shown):
    pool, sources = ladder_pool(), ladder_sources()
    with pytest.raises(BadInput, match="without the columns"):
        show.ladder(pool, sources, alt=ALT, by="weight")
    with pytest.raises(BadInput, match="no ladder"):
        show.ladder(pool.select([0, 1]), sources, alt=ALT)
    with pytest.raises(BadInput, match="resize"):
        show.ladder(pool, ImageSet(np.zeros((4, 8, 8, 3), np.uint8), sources.table), alt=ALT)
