"""LightningModules and small reference networks."""

from snnreg_plugins.modules.classifier import Classifier, SpikingClassifier
from snnreg_plugins.modules.networks import VGG, LeNet

__all__ = ["VGG", "Classifier", "LeNet", "SpikingClassifier"]
