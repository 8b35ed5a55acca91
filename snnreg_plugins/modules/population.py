"""Population code: several outputs of a network speak for each class."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from snnreg_plugins._checks import as_integer, one_of
from snnreg_plugins._models import as_module


class PopulationCode(nn.Module):
    r"""A network with several outputs for each class, whose mean or sum is the score of the class.

    .. math:: z_k = \frac{1}{n} \sum_{i=1}^{n} o_{(k-1) n + i}

    Outputs of a class are next to each other, as in ``snntorch.functional``. Around a DNN it is exported with it, so
    that files, reports and early exit see the scores of the classes (NIR has no such pool). A network of your own that
    gives more than one tensor, or takes a state, has ``PopulationCode(nn.Identity(), size)`` for its last layer.

    Args:
        network: Gives ``(B, n K)``.
        size: n, outputs for each class.
        pooled: ``"mean"`` or ``"sum"``, as for counts of spikes.

    Raises:
        ValueError: If an argument is out of range, or in forward, if the number of outputs is no multiple of ``size``.

    Example:
        >>> import torch
        >>> PopulationCode(nn.Linear(4, 30), size=3)(torch.rand(5, 4)).shape
        torch.Size([5, 10])
    """

    def __init__(self, network: nn.Module, size: int, pooled: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.network = as_module("network", network)
        self.size = as_integer("size", size)
        self.pooled = one_of("pooled", pooled, ("mean", "sum"))

    def forward(self, x: Tensor) -> Tensor:
        """Give ``(B, K)``."""
        outputs = self.network(x)
        if isinstance(outputs, (tuple, list)):
            raise TypeError(
                f"Expected {type(self.network).__name__} to give one tensor to a PopulationCode, but got "
                f"{type(outputs).__name__}. Make PopulationCode(nn.Identity(), {self.size}) the last layer within it."
            )
        if outputs.shape[1] % self.size:
            raise ValueError(
                f"Expected argument `size` to divide the {outputs.shape[1]} outputs of the network, but got "
                f"{self.size}. Give the network a multiple of it for outputs."
            )
        populations: Tensor = outputs.unflatten(1, (-1, self.size))
        return populations.mean(2) if self.pooled == "mean" else populations.sum(2)

    def extra_repr(self) -> str:
        """Show how outputs are pooled in ``print(network)``."""
        return f"size={self.size}, pooled={self.pooled!r}"
