import pytest
import torch

from stda import BadInput, compute


def test_threads_come_from_the_batch(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("STDA_THREADS", "1")
    assert compute.setup("float32").threads == 1
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_precision_is_one_of_three_and_auto_is_resolved():
    assert compute.setup("auto").precision in {"float32", "bf16"}
    with pytest.raises(BadInput, match="precision is 'half'"):
        compute.setup("half")


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_decides_the_type_of_a_matrix_product(precision, dtype):
    machine = compute.Compute(torch.device("cpu"), precision, 1)
    with machine.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_description_names_what_a_manifest_records():
    assert {"device", "threads", "precision"} <= set(compute.setup("float32").describe())


def test_rng_repeats():
    assert torch.equal(torch.randn(3, generator=compute.rng(5)), torch.randn(3, generator=compute.rng(5)))
