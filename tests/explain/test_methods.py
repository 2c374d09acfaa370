import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from stda import BadInput, classify, explain
from stda.explain.subject import ANY, CHAIN, DIFFERENCE, LOGIT, NOTHING


def test_attribution_leaves_the_model_alone(model, images):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    explain.attribute(model, images, "deep_taylor")
    assert model.training
    model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_frozen_batch_norm_stays_frozen(model, images):
    own = deepcopy(model).train()
    frozen = next(layer for layer in own.modules() if isinstance(layer, nn.BatchNorm2d)).eval()
    explain.attribute(own, images, "gradient")
    assert own.training
    assert not frozen.training


FREE = [name for name, method in explain.METHODS.items() if not method.fitted]  # the others need patterns


def test_the_registry_has_every_method_of_the_issue():
    rules = ("z", "epsilon", "w2", "flat", "alpha1beta0", "alpha2beta1", "z_plus")
    presets = ("preset_a", "preset_b", "preset_a_flat", "preset_b_flat")
    slopes = ["gradient", "input_x_gradient", "deconvnet", "guided_backprop", "integrated_gradients", "smoothgrad"]
    wanted = ["input", "random", *slopes, "deeplift", *(f"lrp_{name}" for name in (*rules, *presets))]
    wanted += ["deep_taylor", "deep_taylor_bounded", "pattern_net", "pattern_attribution"]
    assert list(explain.METHODS) == wanted
    for name, method in explain.METHODS.items():
        assert method.title, name
        assert method.source, name
        assert bool(method.why) == (method.network == CHAIN), name
        assert method.conserves in (LOGIT, DIFFERENCE, NOTHING), name


@pytest.mark.parametrize("method", FREE)
def test_batches_and_targets_change_nothing(model, images, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = explain.attribute(model, images, method)
        with torch.no_grad():
            chosen = model(images).argmax(dim=1)
        parts = explain.attribute(model, images, method, chosen.numpy(), batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-6)
    assert whole.shape == images.shape
    assert whole.dtype == torch.float32
    assert not whole.requires_grad
    assert explain.METHODS[method].signed or (whole >= 0).all()


def test_a_target_is_an_index_a_label_or_the_maximum(model, images):
    with torch.no_grad():
        chosen = model(images).argmax(dim=1)
    labels = [model.classes[i] for i in chosen]
    assert explain.targets_of(model, images).tolist() == chosen.tolist()
    assert explain.targets_of(model, images, labels).tolist() == chosen.tolist()
    assert explain.targets_of(model, images, "b").tolist() == [1] * 5
    assert not torch.equal(
        explain.attribute(model, images, "gradient", 0), explain.attribute(model, images, "gradient", "b")
    )


def test_obstacles_name_what_cannot_be_explained():
    free = explain.obstacles(classify.build("mobilenet_v2", n_classes=3, size=32))
    chain = explain.obstacles(classify.build("resnet18", n_classes=3, size=32))
    for name, method in explain.METHODS.items():
        assert bool(free[name]) == (method.network != ANY)
        assert chain[name] == (method.why if method.network == CHAIN else "")


def test_no_images(model, images):
    assert explain.attribute(model, images[:0], "gradient").shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "saliency"}, "integrated_gradients"),
        ({"knob": 1}, "no knob 'knob'; it has none"),
        ({"target": 4}, "out of range"),
        ({"target": -1}, "out of range"),
        ({"target": "melanoma"}, "not a class"),
        ({"target": [0, 1]}, "2 targets came with 5 images"),
        ({"target": 1.5}, "target is of float"),
        ({"target": [0, None, 1, 2, 3]}, "NoneType"),
        ({"target": torch.zeros(5, 2, dtype=torch.long)}, "target is of Tensor"),
        ({"images": np.zeros((1, 3, 32, 32), dtype=np.float32)}, "as a tensor"),
        ({"images": torch.zeros(1, 1, 32, 32)}, "cannot read images of shape"),
        ({"images": torch.zeros(1, 3, 64, 64)}, "cannot read images of shape"),
        ({"batch_size": -1}, "at least 1 image"),
        ({"model": nn.Sequential(nn.Flatten())}, "no weights"),
        ({"method": "deep_taylor", "dtype": torch.float16}, "No relevances in torch.float16"),
        ({"images": torch.zeros(3, 32, 32)}, "float images"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "float images"),
        ({"images": torch.full((1, 3, 32, 32), 255.0)}, "as_tensor"),
        ({"images": torch.full((1, 3, 32, 32), float("nan"))}, "finite"),
    ],
)
def test_bad_input_is_a_sentence(model, images, change, words):
    arguments = {"model": model, "images": images, "method": "gradient", "target": None} | change
    with pytest.raises(BadInput, match=words):
        explain.attribute(**arguments)


@pytest.mark.parametrize("target", [torch.tensor(1), np.array(1), np.int64(1), "b", [1] * 5, torch.ones(5).long()])
def test_a_target_is_given_in_many_forms(model, images, target):
    assert explain.targets_of(model, images, target).tolist() == [1] * 5


def test_names_of_methods_are_checked(model):
    with pytest.raises(BadInput, match="Unknown attribution method"):
        explain.described(["saliency"])
    with pytest.raises(BadInput, match="Unknown attribution method"):
        explain.knobs_for(model, ["saliency"], None)


def test_maps_that_are_not_finite_are_refused(images):
    broken = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    broken[1].weight.data[0, 0] = float("inf")
    with pytest.raises(BadInput, match="not finite"):
        explain.attribute(broken, images, "gradient", 0)


def test_the_study_knows_the_methods_and_what_they_need():
    from stda import sections
    from stda.explain.subject import ANY, CHAIN, LAYERS

    for network, known in (
        (ANY, sections.GRADIENT_METHODS),
        (LAYERS, sections.LAYER_METHODS),
        (CHAIN, sections.CHAIN_METHODS),
    ):
        assert [name for name, method in explain.METHODS.items() if method.network == network] == list(known)
    assert {name for name, method in explain.METHODS.items() if method.fitted} == set(sections.PATTERN_METHODS)
    table = explain.described(list(explain.METHODS))
    assert table["title"].is_unique
    assert set(table["sums to"]) == {"nothing", "logit", "difference"}


def test_the_sign_of_a_gradient_is_no_evidence():
    maps = np.array([[[[1.0, -3.0]], [[2.0, 1.0]]]])  # (1, 2, 1, 2)
    np.testing.assert_array_equal(explain.evidence("deep_taylor", maps), [[[3, -2]]])
    np.testing.assert_array_equal(explain.evidence("a map of mine", maps), [[[3, -2]]])
    np.testing.assert_array_equal(explain.evidence("gradient", maps), [[[3, 4]]])
    np.testing.assert_array_equal(explain.evidence("guided_backprop", maps[:, 0]), [[[1, 3]]])
    read = explain.described(["deep_taylor", "lrp_z", "gradient"])["read"]
    assert read.tolist() == ["for", "for, against", "size"]
