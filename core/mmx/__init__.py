"""mmx: experiments in multimodal learning when modalities are missing."""

from importlib.metadata import version

from mmx.hookspecs import Component, hookimpl

__version__ = version("mmx")
__all__ = ["Component", "__version__", "hookimpl"]
