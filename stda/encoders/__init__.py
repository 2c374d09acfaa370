"""Frozen feature networks: ImageNet networks of torchvision, or one trained on the train fold ("in-domain").

Style transfer reads single layers of them, the fidelity measures their pooled features.  Weights come from a file, from
torchvision's cache or from the train fold; they are never downloaded and never random, and every encoder says where
its weights came from (``provenance``), which goes into the manifests.
"""

from stda.encoders.base import (
    ENCODER_PRECISIONS,
    IN_DOMAIN,
    LAYERS,
    MIN_FEATURE_SIZE,
    NORMALISATIONS,
    Encoder,
    activations,
    encode,
    merge_batch_norm,
)
from stda.encoders.in_domain import InDomain, in_domain_network, load_in_domain, save_in_domain, train_in_domain
from stda.encoders.inception import INCEPTION, Inception, cached_inception, load_inception
from stda.encoders.judge import choose_judge
from stda.encoders.perceptual import embedding, perceptual_vectors
from stda.encoders.pretrained import (
    HALF_NORMALISED,
    NETWORKS,
    cached_weights,
    layer_ends,
    load_encoder,
    missing_weights,
)
from stda.encoders.store import FeatureStore

__all__ = [
    "ENCODER_PRECISIONS",
    "HALF_NORMALISED",
    "INCEPTION",
    "IN_DOMAIN",
    "LAYERS",
    "MIN_FEATURE_SIZE",
    "NETWORKS",
    "NORMALISATIONS",
    "Encoder",
    "FeatureStore",
    "InDomain",
    "Inception",
    "activations",
    "cached_inception",
    "cached_weights",
    "choose_judge",
    "embedding",
    "encode",
    "in_domain_network",
    "layer_ends",
    "load_encoder",
    "load_in_domain",
    "load_inception",
    "merge_batch_norm",
    "missing_weights",
    "perceptual_vectors",
    "save_in_domain",
    "train_in_domain",
]
