"""Tuned settings per environment family, as data: one module per algorithm."""

from jaxrl.cli.presets.preset import Preset, Settings, lookup

__all__ = ["Preset", "Settings", "lookup"]
