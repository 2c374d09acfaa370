"""Methods that send relevance back through the layers: the LRP family and deep Taylor decomposition.

All of them start from the target logit, whatever its sign (deep Taylor: from its positive part), and differ only in
their composite: the rule of each layer.  How pooling, the input scale and branches are passed is told in
:mod:`stda.explain.composites`.  Inputs (N, C, H, W), targets (N,), relevance of the inputs' shape.

Where biases take a share, or epsilon swallows one, the relevances do not sum to the logit, and the method promises
nothing.  Where they promise the logit, outputs that no input supports still drop theirs (:mod:`stda.explain.rules`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stda.explain.composites import Composite, plan, walk
from stda.explain.layers import Trace, trace
from stda.explain.rules import AlphaBeta, Bounded, ByWeight, Epsilon, Rule, alike, squared
from stda.explain.subject import CHAIN, LAYERS, LOGIT, NOTHING, Method, Subject

EPSILON = 1e-6  # as in zennit; iNNvestigate takes 1e-7
DENSE_EPSILON = 0.1  # of the presets' dense layers, as in iNNvestigate

Z, W_SQUARE, FLAT = Epsilon(), ByWeight(squared), ByWeight(alike)
ALPHA1_BETA0, ALPHA2_BETA1, Z_PLUS = AlphaBeta(1, 0), AlphaBeta(2, 1), AlphaBeta(1, 0, bias=False)


@torch.no_grad()
def _explain(subject: Subject, x: Tensor, target: Tensor, composite: Composite, *, above_zero: bool = False) -> Tensor:
    """Send the target logit (or its part above zero) back by the rules of a composite."""
    if composite not in subject.memo:
        subject.memo[composite] = plan(subject.layers, composite)
    passed = _forward(subject, x)
    start = passed.output.gather(1, target[:, None])
    start = torch.zeros_like(passed.output).scatter_(1, target[:, None], start.clamp(min=0) if above_zero else start)
    return walk(subject.memo[composite], passed, start, seen=subject.seen)


def _forward(subject: Subject, x: Tensor) -> Trace:
    """Run the layers, the first ones in float32 where the winners of max-pooling need it (:attr:`Subject.front`)."""
    n = len(subject.front)
    if not n:
        return trace(subject.layers, x)
    begin = trace(subject.front, x.float())
    rest = trace(subject.layers[n:], begin.output.to(x.dtype))
    inner = begin.inner | {n + i: branches for i, branches in rest.inner.items()}
    return Trace([*begin.inputs, *rest.inputs], rest.output, inner)


def lrp_z(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Share by the contributions z = x w of each layer, biases taking their share (Bach et al. 2015, eq. 56).

    In a network of convolutions, ReLU and max-pooling this is input x gradient, up to rounding.
    """
    return _explain(subject, x, target, Composite(Z, Z, Z))


def lrp_epsilon(
    subject: Subject,
    x: Tensor,
    target: Tensor,
    *,
    epsilon: float = EPSILON,  # added to each denominator with its sign: the larger, the fewer weak contributions
) -> Tensor:
    """Share by contributions with stabilised denominators, biases taking their share (Bach et al. 2015, eq. 58).

    Use float32 or float64: relevances of both signs cancel, and bf16 is too coarse for what is left.
    """
    rule = Epsilon(epsilon)
    return _explain(subject, x, target, Composite(rule, rule, rule))


def lrp_w2(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Share by squared weights in every layer, whatever the image (w^2, Montavon et al. 2017); sums to the logit."""
    return _explain(subject, x, target, Composite(W_SQUARE, W_SQUARE, W_SQUARE))


def lrp_flat(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Share equally in every layer (Lapuschkin et al. 2019): shows where max-pooling looks; sums to the logit."""
    return _explain(subject, x, target, Composite(FLAT, FLAT, FLAT))


def lrp_alpha1beta0(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Share by positive contributions, positive biases taking their share (Bach et al. 2015, eq. 60)."""
    return _explain(subject, x, target, Composite(ALPHA1_BETA0, ALPHA1_BETA0, Z_PLUS))


def lrp_alpha2beta1(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Share twice by positive contributions, minus once by negative ones; biases too (Bach et al. 2015, eq. 60)."""
    return _explain(subject, x, target, Composite(ALPHA2_BETA1, ALPHA2_BETA1, Z_PLUS))


def lrp_z_plus(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Share by positive contributions without biases (z+, Montavon et al. 2017); sums to the logit."""
    return _explain(subject, x, target, Composite(Z_PLUS, Z_PLUS, Z_PLUS))


def _preset(conv: Rule, first: Rule | None = None) -> Callable[..., Tensor]:
    """Return a sequential preset of iNNvestigate: epsilon in dense layers, one rule in convolutions."""

    def run(
        subject: Subject,
        x: Tensor,
        target: Tensor,
        *,
        epsilon: float = DENSE_EPSILON,  # of the dense layers
    ) -> Tensor:
        return _explain(subject, x, target, Composite(conv, Epsilon(epsilon), Z_PLUS, first=first))

    return run


lrp_preset_a, lrp_preset_b = _preset(ALPHA1_BETA0), _preset(ALPHA2_BETA1)
lrp_preset_a_flat, lrp_preset_b_flat = _preset(ALPHA1_BETA0, first=FLAT), _preset(ALPHA2_BETA1, first=FLAT)


def deep_taylor(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the deep Taylor decomposition of the target logit (Montavon et al. 2017), all values >= 0.

    As in iNNvestigate: z+ without bias at kernels with a ReLU behind them, w^2 at the others (here the last layer),
    and only a positive logit is explained: where it is not, the map is zero.  The map sums to the logit.  A separate
    ReLU passes relevance on unchanged (as zennit does; iNNvestigate's treats it as part of the kernel before it).
    """
    return _explain(subject, x, target, Composite(Z_PLUS, Z_PLUS, Z_PLUS, open_ended=W_SQUARE), above_zero=True)


def deep_taylor_bounded(subject: Subject, x: Tensor, target: Tensor) -> Tensor:
    """Return the deep Taylor decomposition with z^B at the input: pixel values are known to lie in [-1, 1].

    Behind the input scale of a pretrained network the bounds are the scaled ones.  Unlike z+, the rule of the first
    layer can give relevance to values near zero, which is mid-grey and not absence.
    """
    composite = Composite(Z_PLUS, Z_PLUS, Z_PLUS, first=Bounded(), open_ended=W_SQUARE)
    return _explain(subject, x, target, composite, above_zero=True)


WHY_DEEP_TAYLOR = (
    "A residual block adds two branches before its ReLU, so the point where one kernel's own output reaches zero is "
    "not a root of what the ReLU lets through, and the expansion at root points that justifies deep Taylor has no "
    "ground there: take a method of the LRP family, which needs no root points."
)
BACH, MONTAVON, LAPUSCHKIN = "Bach et al. 2015", "Montavon et al. 2017", "Lapuschkin et al. 2019"
PRESETS = "Alber et al. 2019 (iNNvestigate)"


def _lrp(run: Callable[..., Tensor], title: str, source: str, conserves: str = NOTHING) -> Method:
    return Method(run, title, source, LAYERS, conserves=conserves)


def _deep_taylor(run: Callable[..., Tensor], title: str) -> Method:
    return Method(run, title, MONTAVON, CHAIN, WHY_DEEP_TAYLOR, signed=False, conserves=LOGIT)


METHODS = {
    "lrp_z": _lrp(lrp_z, "LRP-z", BACH),
    "lrp_epsilon": _lrp(lrp_epsilon, "LRP-epsilon", BACH),
    "lrp_w2": _lrp(lrp_w2, "LRP-w²", MONTAVON, LOGIT),
    "lrp_flat": _lrp(lrp_flat, "LRP-flat", LAPUSCHKIN, LOGIT),
    "lrp_alpha1beta0": _lrp(lrp_alpha1beta0, "LRP-alpha1-beta0", BACH),
    "lrp_alpha2beta1": _lrp(lrp_alpha2beta1, "LRP-alpha2-beta1", BACH),
    "lrp_z_plus": _lrp(lrp_z_plus, "LRP-z+", MONTAVON, LOGIT),
    "lrp_preset_a": _lrp(lrp_preset_a, "LRP preset A", PRESETS),
    "lrp_preset_b": _lrp(lrp_preset_b, "LRP preset B", PRESETS),
    "lrp_preset_a_flat": _lrp(lrp_preset_a_flat, "LRP preset A (flat)", PRESETS),
    "lrp_preset_b_flat": _lrp(lrp_preset_b_flat, "LRP preset B (flat)", PRESETS),
    "deep_taylor": _deep_taylor(deep_taylor, "deep Taylor"),
    "deep_taylor_bounded": _deep_taylor(deep_taylor_bounded, "deep Taylor (bounded)"),
}
