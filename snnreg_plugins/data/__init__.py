"""Images, time series, events, and a simulated channel, as LightningDataModules.

They are of ``lightning.pytorch``: a Trainer of ``pytorch_lightning``, the same package by its old name, refuses them.
Write ``import lightning.pytorch as pl``. Callbacks, exports, metrics and reports work with both names.
"""

from snnreg_plugins.data.cifar10 import CIFAR10
from snnreg_plugins.data.digits import Digits
from snnreg_plugins.data.event_files import EventFiles
from snnreg_plugins.data.idx import MNIST, FashionMNIST
from snnreg_plugins.data.optical import OpticalChannel
from snnreg_plugins.data.time_series import DigitRows, JapaneseVowels
from snnreg_plugins.data.tonic_events import TonicEvents

__all__ = [
    "CIFAR10",
    "MNIST",
    "DigitRows",
    "Digits",
    "EventFiles",
    "FashionMNIST",
    "JapaneseVowels",
    "OpticalChannel",
    "TonicEvents",
]
