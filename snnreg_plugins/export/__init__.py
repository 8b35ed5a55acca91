"""Export of trained networks to spiking neurons."""

from snnreg_plugins.export.api import to_norse, to_snntorch
from snnreg_plugins.export.deployment import deploy
from snnreg_plugins.export.margins import exit_margins
from snnreg_plugins.export.processes import Sharded
from snnreg_plugins.export.refusals import ConversionError
from snnreg_plugins.spiking.network import SpikingNetwork

__all__ = ["ConversionError", "Sharded", "SpikingNetwork", "deploy", "exit_margins", "to_norse", "to_snntorch"]
