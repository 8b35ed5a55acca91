"""LightningModules and small reference networks.

They are of ``lightning.pytorch``: a Trainer of ``pytorch_lightning``, the same package by its old name, refuses them.
Write ``import lightning.pytorch as pl``. Callbacks, exports, metrics and reports work with both names.
"""

from snnreg_plugins.modules.classifier import Classifier
from snnreg_plugins.modules.equalizer import Equalizer, SpikingEqualizer
from snnreg_plugins.modules.networks import VGG, LeNet
from snnreg_plugins.modules.population import PopulationCode
from snnreg_plugins.modules.recurrent import RecurrentNetwork
from snnreg_plugins.modules.spiking_classifier import SpikingClassifier

__all__ = [
    "VGG",
    "Classifier",
    "Equalizer",
    "LeNet",
    "PopulationCode",
    "RecurrentNetwork",
    "SpikingClassifier",
    "SpikingEqualizer",
]
