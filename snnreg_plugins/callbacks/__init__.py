"""Lightning callbacks; one class a file."""

from snnreg_plugins.callbacks.activity_budget import ActivityBudget
from snnreg_plugins.callbacks.activity_regularization import ActivityRegularization
from snnreg_plugins.callbacks.compressed_activations import CompressedActivations
from snnreg_plugins.callbacks.distillation import Distillation
from snnreg_plugins.callbacks.export_report import ExportReport
from snnreg_plugins.callbacks.few_bit_weights import FewBitWeights
from snnreg_plugins.callbacks.progressive_tandem import ProgressiveTandem
from snnreg_plugins.callbacks.qcfs_activations import QCFSActivations
from snnreg_plugins.callbacks.raised_thresholds import RaisedThresholds
from snnreg_plugins.callbacks.spiking_validation import SpikingValidation
from snnreg_plugins.callbacks.table_sparsity import TableSparsity
from snnreg_plugins.training.compression import compressed_activations

__all__ = [
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
    "compressed_activations",
]
