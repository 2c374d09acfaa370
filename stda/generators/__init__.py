"""Generators of synthetic images, one file per method behind one protocol (:class:`stda.generators.base.Generator`)."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from stda import BadInput
from stda.generators.base import Generator, Unfinished, read_settings, synthetic_labels

__all__ = ["GENERATORS", "Generator", "Unfinished", "create", "generator_class", "knobs", "load", "synthetic_labels"]

# name -> (module, class); imported when asked for, so that a notebook pays for the one method it shows
GENERATORS = {
    "nst": ("stda.generators.nst", "StyleTransfer"),
    "dcgan": ("stda.generators.dcgan", "DCGAN"),
    "wgan": ("stda.generators.wgan", "WGAN"),
    "pggan": ("stda.generators.pggan", "ProgressiveGAN"),
}


def generator_class(name: str) -> type[Generator]:
    """Return the class of the generator called ``name``; raise BadInput for an unknown name."""
    if name not in GENERATORS:
        raise BadInput(f"Unknown generator '{name}'; it must be one of {', '.join(GENERATORS)}.")
    module, class_name = GENERATORS[name]
    return getattr(import_module(module), class_name)


def knobs(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return those of the ``values``, a notebook's parameters, that are knobs of the GAN called ``name``."""
    known = {field.name for field in fields(generator_class(name)) if field.init}
    return {knob: value for knob, value in values.items() if knob in known}


def create(name: str, **knobs: Any) -> Generator:
    """Make a generator that has not been fitted; ``knobs`` are the keyword arguments of its class."""
    return generator_class(name)(**knobs)


def load(folder: Path, **parts: Any) -> Generator:
    """Open a fitted generator from its folder; ``parts`` are what a file cannot hold (``compute``, an encoder, ...)."""
    return generator_class(read_settings(folder)["generator"]).load(folder, **parts)
