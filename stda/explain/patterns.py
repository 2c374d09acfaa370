"""PatternNet and PatternAttribution: the signal that a neuron answers to, estimated on the train fold."""

from __future__ import annotations

METHODS: dict = {}
