"""Small image sets as LightningDataModules, all with the same splits, shapes and value range."""

from snnreg_plugins.data.cifar10 import CIFAR10
from snnreg_plugins.data.digits import Digits
from snnreg_plugins.data.idx import MNIST, FashionMNIST

__all__ = ["CIFAR10", "MNIST", "Digits", "FashionMNIST"]
