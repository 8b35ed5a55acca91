"""What any network spends: :func:`profile` in Python, ``snnreg profile`` on the command line."""

from snnreg_plugins.profile.command import load_factory, load_inputs
from snnreg_plugins.profile.measure import profile
from snnreg_plugins.profile.result import LayerProfile, Profile

__all__ = ["LayerProfile", "Profile", "load_factory", "load_inputs", "profile"]
