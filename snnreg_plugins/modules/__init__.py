"""LightningModules and small reference networks."""

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
