"""Damping strategies; see `sklm.damping.Damping` for one of your own."""

from sklm.engine.damping import Damping, MultiplicativeDamping, NielsenDamping

__all__ = ["Damping", "MultiplicativeDamping", "NielsenDamping"]
