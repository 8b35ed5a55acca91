"""Train sparse networks in PyTorch Lightning, export them to spiking neurons, and see what every spike costs."""

from snnreg_plugins.callbacks import ActivityRegularization
from snnreg_plugins.export import ConversionError, SpikingNetwork, to_snntorch
from snnreg_plugins.metrics import Energy, SpikeRate, SynapticOperations

__version__ = "0.1.0"

__all__ = [
    "ActivityRegularization",
    "ConversionError",
    "Energy",
    "SpikeRate",
    "SpikingNetwork",
    "SynapticOperations",
    "to_snntorch",
]
