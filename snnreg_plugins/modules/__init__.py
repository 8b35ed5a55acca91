"""LightningModules and small reference networks."""

from snnreg_plugins.modules.classifier import Classifier, SpikingClassifier, load_network
from snnreg_plugins.modules.networks import VGG, LeNet

__all__ = ["VGG", "Classifier", "LeNet", "SpikingClassifier", "load_network"]
