"""Train sparse networks in PyTorch Lightning, export them to spiking neurons, and see what every spike costs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for tools that read code; "as" tells them that a name is handed on
    from snnreg_plugins.callbacks import ActivityBudget as ActivityBudget
    from snnreg_plugins.callbacks import ActivityRegularization as ActivityRegularization
    from snnreg_plugins.callbacks import CompressedActivations as CompressedActivations
    from snnreg_plugins.callbacks import Distillation as Distillation
    from snnreg_plugins.callbacks import ExportReport as ExportReport
    from snnreg_plugins.callbacks import FewBitWeights as FewBitWeights
    from snnreg_plugins.callbacks import ProgressiveTandem as ProgressiveTandem
    from snnreg_plugins.callbacks import QCFSActivations as QCFSActivations
    from snnreg_plugins.callbacks import RaisedThresholds as RaisedThresholds
    from snnreg_plugins.callbacks import SpikingValidation as SpikingValidation
    from snnreg_plugins.callbacks import TableSparsity as TableSparsity
    from snnreg_plugins.export import ConversionError as ConversionError
    from snnreg_plugins.export import Sharded as Sharded
    from snnreg_plugins.export import SpikingNetwork as SpikingNetwork
    from snnreg_plugins.export import deploy as deploy
    from snnreg_plugins.export import exit_margins as exit_margins
    from snnreg_plugins.export import to_norse as to_norse
    from snnreg_plugins.export import to_snntorch as to_snntorch
    from snnreg_plugins.export.files import load_network as load_network
    from snnreg_plugins.export.files import save_network as save_network
    from snnreg_plugins.metrics import Energy as Energy
    from snnreg_plugins.metrics import SpikeRate as SpikeRate
    from snnreg_plugins.metrics import SpikeStatistics as SpikeStatistics
    from snnreg_plugins.metrics import SynapticOperations as SynapticOperations
    from snnreg_plugins.metrics import TimeSteps as TimeSteps
    from snnreg_plugins.nir.files import from_nir as from_nir
    from snnreg_plugins.nir.files import to_nir as to_nir
    from snnreg_plugins.profile import profile as profile
    from snnreg_plugins.reports.compare import compare as compare
    from snnreg_plugins.reports.diagnose import diagnose as diagnose
    from snnreg_plugins.reports.folder import write_page as write_page
    from snnreg_plugins.reports.measure import report as report
    from snnreg_plugins.reports.record import record as record
    from snnreg_plugins.reports.save import savings as savings
    from snnreg_plugins.spiking.encoder import TableEncoder as TableEncoder
    from snnreg_plugins.training.compression import compressed_activations as compressed_activations

__version__ = "0.1.0"

# Loaded when asked for: Lightning and torchmetrics import whatever of torchvision and matplotlib is installed.
_NAMES = {
    "callbacks": (
        "ActivityBudget",
        "ActivityRegularization",
        "CompressedActivations",
        "Distillation",
        "ExportReport",
        "FewBitWeights",
        "ProgressiveTandem",
        "QCFSActivations",
        "RaisedThresholds",
        "SpikingValidation",
        "TableSparsity",
    ),
    "export": (
        "ConversionError",
        "Sharded",
        "SpikingNetwork",
        "exit_margins",
        "deploy",
        "to_norse",
        "to_snntorch",
    ),
    "export.files": (
        "load_network",
        "save_network",
    ),
    "metrics": (
        "Energy",
        "SpikeRate",
        "SpikeStatistics",
        "SynapticOperations",
        "TimeSteps",
    ),
    "nir.files": (
        "from_nir",
        "to_nir",
    ),
    "reports.compare": ("compare",),
    "profile": ("profile",),
    "reports.diagnose": ("diagnose",),
    "reports.measure": ("report",),
    "reports.record": ("record",),
    "reports.save": ("savings",),
    "reports.folder": ("write_page",),
    "spiking.encoder": ("TableEncoder",),
    "training.compression": ("compressed_activations",),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_module(f"{__name__}.{_HOMES[name]}")
    if _HOMES[name] != name:  # a module of that name is called itself
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
