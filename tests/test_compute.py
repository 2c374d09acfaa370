import subprocess
import sys

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


FAULTS = """
import resource, sys, torch
from stda import compute

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep" and not compute.keep_freed_memory():
    print("cannot")
    raise SystemExit
for step in range(12):
    if step == 8:
        before = used()
    tensors = [torch.ones(2**24) for _ in range(2)]
    del tensors
print(used() - before)
"""


def test_freed_memory_is_kept_where_the_library_can():
    """Blocks of 64 MB, larger than glibc ever keeps by itself: fetched anew in each step, or, once warm, not at all."""
    pytest.importorskip("resource")
    run = [subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True) for way in ("keep", "")]
    kept, fresh = (found.stdout.strip() for found in run)
    if kept == "cannot":
        pytest.skip("this C library has no mallopt")
    assert int(kept) < 100
    assert int(kept) < int(fresh) / 10


def test_a_library_without_the_switch_is_left_alone(monkeypatch):
    monkeypatch.setattr(compute.ctypes, "CDLL", lambda name: object())
    assert compute.keep_freed_memory() is False
