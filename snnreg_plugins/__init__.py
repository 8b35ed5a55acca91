"""Train sparse networks in PyTorch Lightning, export them to spiking neurons, and see what every spike costs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnreg_plugins.callbacks import (
        ActivityRegularization,
        CompressedActivations,
        QCFSActivations,
        SpikingValidation,
        compressed_activations,
    )
    from snnreg_plugins.export import ConversionError, SpikingNetwork, to_snntorch
    from snnreg_plugins.export.nir import from_nir, to_nir
    from snnreg_plugins.export.norse import to_norse
    from snnreg_plugins.metrics import Energy, SpikeRate, SpikeStatistics, SynapticOperations, TimeSteps

__version__ = "0.1.0"

__all__ = [
    "ActivityRegularization",
    "CompressedActivations",
    "ConversionError",
    "Energy",
    "QCFSActivations",
    "SpikeRate",
    "SpikeStatistics",
    "SpikingNetwork",
    "SpikingValidation",
    "SynapticOperations",
    "TimeSteps",
    "compressed_activations",
    "from_nir",
    "to_nir",
    "to_norse",
    "to_snntorch",
]

# Loaded when asked for: Lightning and torchmetrics import whatever of torchvision and matplotlib is installed.
_HOMES = {
    "ActivityRegularization": "callbacks",
    "CompressedActivations": "callbacks",
    "ConversionError": "export",
    "Energy": "metrics",
    "QCFSActivations": "callbacks",
    "SpikeRate": "metrics",
    "SpikeStatistics": "metrics",
    "SpikingNetwork": "export",
    "SpikingValidation": "callbacks",
    "SynapticOperations": "metrics",
    "TimeSteps": "metrics",
    "compressed_activations": "callbacks",
    "from_nir": "export.nir",
    "to_nir": "export.nir",
    "to_norse": "export.norse",
    "to_snntorch": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
