"""Train sparse networks in PyTorch Lightning, export them to spiking neurons, and see what every spike costs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snnreg_plugins.callbacks import (
        ActivityRegularization,
        CompressedActivations,
        ExportReport,
        QCFSActivations,
        SpikingValidation,
        compressed_activations,
    )
    from snnreg_plugins.export import ConversionError, Sharded, SpikingNetwork, exit_margins, to_norse, to_snntorch
    from snnreg_plugins.export.files import load_network, save_network
    from snnreg_plugins.metrics import Energy, SpikeRate, SpikeStatistics, SynapticOperations, TimeSteps
    from snnreg_plugins.nir.files import from_nir, to_nir
    from snnreg_plugins.reports.diagnose import diagnose
    from snnreg_plugins.reports.measure import report
    from snnreg_plugins.reports.raster import record
    from snnreg_plugins.reports.run import write_page

__version__ = "0.1.0"

__all__ = [
    "ActivityRegularization",
    "CompressedActivations",
    "ConversionError",
    "Energy",
    "ExportReport",
    "QCFSActivations",
    "Sharded",
    "SpikeRate",
    "SpikeStatistics",
    "SpikingNetwork",
    "SpikingValidation",
    "SynapticOperations",
    "TimeSteps",
    "compressed_activations",
    "diagnose",
    "exit_margins",
    "from_nir",
    "load_network",
    "record",
    "report",
    "save_network",
    "to_nir",
    "to_norse",
    "to_snntorch",
    "write_page",
]

# Loaded when asked for: Lightning and torchmetrics import whatever of torchvision and matplotlib is installed.
_HOMES = {
    "ActivityRegularization": "callbacks",
    "CompressedActivations": "callbacks",
    "ConversionError": "export",
    "Energy": "metrics",
    "ExportReport": "callbacks",
    "QCFSActivations": "callbacks",
    "Sharded": "export",
    "SpikeRate": "metrics",
    "SpikeStatistics": "metrics",
    "SpikingNetwork": "export",
    "SpikingValidation": "callbacks",
    "SynapticOperations": "metrics",
    "TimeSteps": "metrics",
    "compressed_activations": "callbacks",
    "diagnose": "reports.diagnose",
    "exit_margins": "export",
    "from_nir": "nir.files",
    "load_network": "export.files",
    "record": "reports.raster",
    "report": "reports.measure",
    "save_network": "export.files",
    "to_nir": "nir.files",
    "to_norse": "export",
    "to_snntorch": "export",
    "write_page": "reports.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
