"""The in-domain classifier: it learns, repeats, survives saving, and sees the train fold only."""

import numpy as np
import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.images import ImageSet


def test_in_domain_learns_is_frozen_and_repeats(trained, toy, machine):
    test = toy(seed=9, split="test")
    probabilities = trained.classify(test, machine)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert (np.array(trained.classes)[probabilities.argmax(axis=1)] == test.labels).mean() > 0.9
    assert not any(p.requires_grad for p in trained.parameters())
    assert not trained.train().training

    before, records = torch.get_rng_state(), []
    again = E.train_in_domain(toy(), steps=12, seed=3, compute=machine, batch_size=16, callback=records.append)
    assert torch.equal(before, torch.get_rng_state())
    assert again.provenance == trained.provenance
    assert [r["step"] for r in records] == list(range(1, 13))
    assert np.array_equal(again.classify(test, machine), probabilities)
    other = E.train_in_domain(toy(), steps=12, seed=4, compute=machine, batch_size=16)
    assert other.provenance["sha256"] != trained.provenance["sha256"]


def test_in_domain_survives_saving(trained, toy, machine, tmp_path):
    E.save_in_domain(trained, tmp_path)
    opened = E.load_in_domain(tmp_path)
    assert (opened.classes, opened.size, opened.provenance) == (trained.classes, trained.size, trained.provenance)
    test = toy(seed=5, split="test")
    assert np.array_equal(opened.classify(test, machine), trained.classify(test, machine))
    text = (tmp_path / "encoder.json").read_text()
    (tmp_path / "encoder.json").write_text(text.replace(trained.provenance["sha256"], "0" * 64))
    with pytest.raises(BadInput, match="SHA-256"):
        E.load_in_domain(tmp_path)
    with pytest.raises(BadInput, match="01_data"):
        E.load_in_domain(tmp_path / "nothing")


def test_in_domain_refuses_what_it_must_not_see(trained, toy, machine):
    mixed = ImageSet.concat(toy(), toy(split="test"))
    with pytest.raises(BadInput, match="train fold only"):
        E.train_in_domain(mixed, steps=1, seed=0, compute=machine)
    with pytest.raises(BadInput, match="2 classes"):
        E.train_in_domain(toy().select(label="red"), steps=1, seed=0, compute=machine)
    with pytest.raises(BadInput, match="trained at 16 px"):
        trained.classify(toy(size=20), machine)
    assert trained.classify(toy().select([]), machine).shape == (0, 2)
