"""Small sets of images and time series as LightningDataModules, all with the same splits."""

from snnreg_plugins.data.cifar10 import CIFAR10
from snnreg_plugins.data.digits import Digits
from snnreg_plugins.data.idx import MNIST, FashionMNIST
from snnreg_plugins.data.time_series import DigitRows, JapaneseVowels

__all__ = ["CIFAR10", "MNIST", "DigitRows", "Digits", "FashionMNIST", "JapaneseVowels"]
