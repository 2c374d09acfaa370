"""Which network judges: by name, by what is cached, by the study's encoder."""

import pytest
import torch

from stda import BadInput
from stda import encoders as E
from stda.encoders import judge as module


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


def test_the_judge_is_the_one_that_is_named(trained, squeezenet, no_cache):
    assert E.choose_judge("encoder", study=squeezenet, in_domain=trained) is squeezenet
    assert E.choose_judge("in-domain", study=squeezenet, in_domain=trained) is trained
    assert E.choose_judge("squeezenet1_0", study=squeezenet, in_domain=trained) is squeezenet  # its weights, no cache
    for name, said in (("inception", "No Inception weights"), ("mobilenet_v2", "No ImageNet weights")):
        with pytest.raises(BadInput, match=rf"data\.judge is '{name}'\. {said}"):
            E.choose_judge(name, study=squeezenet, in_domain=trained)


def test_auto_is_inception_where_its_weights_are_cached(trained, squeezenet, no_cache, monkeypatch):
    assert E.choose_judge("auto", study=squeezenet, in_domain=trained) is squeezenet
    assert E.choose_judge("auto", study=trained, in_domain=trained) is trained
    no_cache.mkdir()
    E.cached_inception().write_bytes(b"weights")
    monkeypatch.setattr(module, "load_inception", lambda: "Inception")
    assert E.choose_judge("auto", study=squeezenet, in_domain=trained) == "Inception"
