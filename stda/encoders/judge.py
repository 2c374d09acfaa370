"""Which network measures how close synthetic images are to real ones."""

from __future__ import annotations

from stda import BadInput
from stda.encoders.base import IN_DOMAIN, Encoder
from stda.encoders.in_domain import InDomain
from stda.encoders.inception import INCEPTION, cached_inception, load_inception
from stda.encoders.pretrained import load_encoder


def choose_judge(judge: str, *, study: Encoder, in_domain: InDomain) -> Encoder:
    """Return the encoder whose features measure fidelity.

    ``judge`` is "auto" (Inception where its weights are in torch.hub's cache, else the study's encoder), "encoder" (the
    study's), "in-domain", "inception", or a network of torchvision: the study's encoder where it is that network, else
    from torchvision's cache.  Raises BadInput when weights of a named judge are missing.
    """
    if judge == "auto":
        judge = INCEPTION if cached_inception().is_file() else "encoder"
    if judge in ("encoder", study.name):
        return study
    if judge == IN_DOMAIN:
        return in_domain
    try:
        return load_inception() if judge == INCEPTION else load_encoder(judge)
    except BadInput as error:
        raise BadInput(f"data.judge is '{judge}'. {error}") from None
