"""What can be known of a study only with its data and this machine: classes, masks, files, weights."""

from __future__ import annotations

from pathlib import Path

from stda import BadInput
from stda.study import Study


def check_choices(study: Study, classes: list[str]) -> None:
    """Check what needs the data or the disk to be known: a class that is named, masks, files."""
    from stda.data import has_masks

    named = {"nst.content_class": study.nst.content_class, "dcgan.small_class": study.dcgan.small_class}
    for key, name in named.items():
        if name and name not in classes:
            raise BadInput(f"{key} is '{name}', but the data has {', '.join(classes)}; choose one of these.")
    least = {"dcgan": ("steps", len(classes) if study.dcgan.mode == "per-class" else 1)}
    least["wgan"] = ("latent", len(classes) + 1)
    for name, (key, fewest) in least.items():
        given = getattr(getattr(study, name), key)
        if name in study.generators and given < fewest:
            raise BadInput(f"{name}.{key} is {given}; with {len(classes)} classes it must be {fewest} or more.")
    if study.results.metric in ("sensitivity", "specificity") and len(classes) != 2:
        raise BadInput(
            f"results.metric is '{study.results.metric}', which needs two classes; the data has {len(classes)}."
        )
    wants_masks = study.nst.regions or "lesion" in (study.nst.content_mask, study.nst.style_mask)
    if "nst" in study.generators and wants_masks and not has_masks(study.data.model_dump()):
        raise BadInput(
            f"nst asks for lesion masks, which source {study.data.source} lacks here; leave content_mask, style_mask "
            "and regions at their defaults."
        )
    if study.nst.start_file and not Path(study.nst.start_file).is_file():
        raise BadInput(f"nst.start_file {study.nst.start_file} is not there; give the path of a picture.")
    check_judge(study)
    _check_weights("data.encoder_weights", study.data.encoder, study.data.encoder_weights or "cache", "in-domain")
    _check_weights("classification.weights", study.classification.network, study.classification.weights, "vgg8")


def check_judge(study: Study) -> None:
    """Raise when the network that is named to measure fidelity has no weights here."""
    judge = study.data.judge
    if judge == "inception":
        from stda.encoders import cached_inception
        from stda.encoders.inception import missing_inception

        if not cached_inception().is_file():
            raise BadInput(f"data.judge is 'inception'. {missing_inception(cached_inception(), cached=True)}")
    elif judge not in ("auto", "encoder", "in-domain", study.data.encoder):
        _check_weights("data.judge", judge, "cache", "in-domain")


def _check_weights(key: str, network: str, weights: str, without: str) -> None:
    """Raise when a file of weights, given or in torchvision's cache, is not there; ``without`` is a network without."""
    if network == without or weights == "none":
        return
    if weights == "cache":
        from stda.encoders import cached_weights

        weights = str(cached_weights(network))
    if not Path(weights).is_file():
        remedy = {"data.judge": "judge: auto", "data.encoder_weights": "encoder: in-domain"}.get(key, "weights: none")
        raise BadInput(f"{key} of {network}: {weights} is not there; give the path of the file, or choose {remedy}.")
