"""Encoders: one file a family; this catalogue imports none of them."""

from mmx import Component, hookimpl


@hookimpl
def register_encoders() -> list[Component]:
    """Offer the built-in encoders."""
    return [
        Component("mlp", "mmx_encoders.mlp:Mlp", summary="perceptron on a feature vector"),
    ]
