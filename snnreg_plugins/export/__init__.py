"""Export of trained networks to spiking neurons; one file a target."""

from snnreg_plugins.export.early_exit import exit_margins
from snnreg_plugins.export.graph import ConversionError
from snnreg_plugins.export.network import SpikingNetwork
from snnreg_plugins.export.processes import Sharded
from snnreg_plugins.export.snntorch import to_snntorch

__all__ = ["ConversionError", "Sharded", "SpikingNetwork", "exit_margins", "to_snntorch"]
