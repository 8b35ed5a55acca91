"""What any network spends: :func:`profile` in Python, ``snnreg profile`` on the command line.

The module is called as the function is: ``from snnreg_plugins import profile`` gives it.
"""

import sys
from types import ModuleType

from snnreg_plugins.profile.command import load_factory, load_inputs
from snnreg_plugins.profile.measure import profile
from snnreg_plugins.profile.result import LayerProfile, Profile

__all__ = ["LayerProfile", "Profile", "load_factory", "load_inputs", "profile"]


class _Profile(ModuleType):
    """A module that is called."""

    __call__ = staticmethod(profile)


sys.modules[__name__].__class__ = _Profile
