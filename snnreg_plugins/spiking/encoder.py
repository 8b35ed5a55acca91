"""A learned code of values: a table of patterns of spikes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnreg_plugins._checks import as_integer, as_number
from snnreg_plugins.functional.encoding import midrise, normalized_rows, rounded_pattern
from snnreg_plugins.functional.penalties import hoyer
from snnreg_plugins.spiking.inputs import require_tensor

_MOST_BITS = 16


class TableEncoder(nn.Module):
    r"""A learned table from quantized values to patterns of M lines over T time steps.

    Every input value x is quantized to :math:`2^\text{bits}` levels, q(x) as of
    :func:`~snnreg_plugins.functional.midrise`, and sends row q(x) of the table,

    .. math:: s_{t, m}(x) = W_{q(x), m, t}, \qquad \max_{m, t} |W_{q, m, t}| = 1

    into the M input lines that it has in each of T steps. Put it in front of any network that reads time steps first,
    ``(T, B, ...)``: a loop in snnTorch or Norse, or a :class:`~snnreg_plugins.SpikingNetwork` with ``time_dim = 0``,
    as in ``nn.Sequential(encoder, network)``. It is trained with the network like any layer; gradients end at the
    table, as quantization has none.

    Before a row is used or saved it is divided by its largest magnitude, in the parameter itself: so each optimizer
    step starts from rows that have a largest magnitude of 1, as if they were divided after the step before, whoever
    runs the loop. Its gradient is that of the rows as they are used.

    A real-valued pattern is multiplied by the weights that read it: :class:`~snnreg_plugins.SynapticOperations` counts
    an effective MAC for each entry that is not 0, and synapse. With ``pattern_bits=1`` the pattern is spikes of 0 and
    1, with 2 of -1, 0 and 1, which cost SOPs; with more bits, entries round to few values, and small ones to 0, which
    costs nothing. Looking up is no synapse. What the table sends is made sparse by :meth:`sparsity` in the loss, which
    the callback :class:`~snnreg_plugins.TableSparsity` adds, and by :class:`~snnreg_plugins.ActivityRegularization` of
    the layer that reads it.

    Args:
        lines: M, the lines of a value.
        timesteps: T.
        bits: Bits that a value is quantized to, at most 16.
        low: Lower end of the range of values.
        high: Upper end. Bytes are their own codes with ``low=0, high=256``.
        channels: Give each of so many channels, dimension 1 of the input, a table of its own; None for one table of
            all.
        pattern_bits: Bits of an entry: 1 for spikes of 0 and 1, up to 16 for multiples of 1/(2^(bits-1) - 1) from -1
            to 1; real if None. Gradients pass as if nothing was rounded.

    Attributes:
        weight: The table before normalization and rounding, ``(tables, 2^bits, M, T)``; :meth:`patterns` is what is
            sent.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        OptiSpike, `arXiv 2312.12909 <https://arxiv.org/abs/2312.12909>`_, where the pattern is real-valued.

    Example:
        >>> encoder = TableEncoder(lines=3, timesteps=5)
        >>> encoder(torch.randn(2, 41)).shape  # of 41 values, 3 lines each, in 5 steps
        torch.Size([5, 2, 123])
        >>> images = TableEncoder(lines=1, timesteps=4, low=0, high=256, channels=3, pattern_bits=1)
        >>> images(torch.randint(256, (2, 3, 8, 8))).shape
        torch.Size([4, 2, 3, 8, 8])
    """

    def __init__(
        self,
        lines: int = 8,
        timesteps: int = 10,
        bits: int = 8,
        low: float = -4.0,
        high: float = 4.0,
        channels: int | None = None,
        pattern_bits: int | None = None,
    ) -> None:
        super().__init__()
        self.lines, self.timesteps = as_integer("lines", lines), as_integer("timesteps", timesteps)
        self.bits = _as_bits("bits", bits)
        self.low, self.high = as_number("low", low, "(-inf, inf)"), as_number("high", high, "(-inf, inf)")
        if self.low >= self.high:
            raise ValueError(f"Expected argument `low` to be below `high`, but got {self.low:g} and {self.high:g}.")
        self.channels = None if channels is None else as_integer("channels", channels)
        self.pattern_bits = None if pattern_bits is None else _as_bits("pattern_bits", pattern_bits)
        self.weight = nn.Parameter(torch.empty(self.channels or 1, 2**self.bits, self.lines, self.timesteps))
        self.reset_parameters()
        self.register_state_dict_pre_hook(_normalize_before)  # type: ignore[no-untyped-call]

    def reset_parameters(self) -> None:
        """Draw a new table: normal, then normalized."""
        nn.init.normal_(self.weight)
        self._normalize()

    def forward(self, x: Tensor) -> Tensor:
        """Give the patterns of values.

        Args:
            x: Values ``(B, N)``, or ``(B, C, ...)``, such as images; of any type.

        Returns:
            ``(T, B, N * M)``, the M lines of a value side by side; ``(T, B, C * M, ...)`` of images. NaN for values
            that are NaN.

        Raises:
            ValueError: If the input has no such dimensions, or other channels than the encoder.
            TypeError: If it is no tensor, or complex.
        """
        require_tensor(x, self)
        if x.dim() < 2 or (self.channels is not None and x.shape[1] != self.channels):
            channels = "C" if self.channels is None else str(self.channels)
            raise ValueError(f"Expected argument `x` to have shape (B, {channels}, ...), but got {tuple(x.shape)}.")
        codes = midrise(x, self.bits, self.low, self.high)
        rows = self.patterns().flatten(2)  # (tables, 2^bits, M * T)
        # A last row for what is no number.
        rows = torch.cat([rows, rows.new_full((len(rows), 1, rows.shape[2]), torch.nan)], 1)
        if self.channels is not None:
            first = torch.arange(self.channels, device=x.device) * rows.shape[1]
            codes = codes + first.reshape(-1, *[1] * (x.dim() - 2))
        sent = nn.functional.embedding(codes, rows.flatten(0, 1)).view(*x.shape, self.lines, self.timesteps)
        # (B, C, ..., M, T) to (T, B, C * M, ...)
        return sent.movedim((-1, -2), (0, 3)).flatten(2, 3)

    def patterns(self) -> Tensor:
        """Give what is sent for each level: rows normalized and rounded, ``(tables, 2^bits, M, T)``."""
        self._normalize()
        return self.weight if self.pattern_bits is None else rounded_pattern(self.weight, self.pattern_bits)

    def sparsity(self) -> Tensor:
        r"""Give how many entries of a row are active, about: the mean of L1 over L2 norm, to be added to the loss.

        .. math:: R = \frac{1}{\text{rows}} \sum_q \frac{\lVert W_q \rVert_1}{\lVert W_q \rVert_2}

        Between 1, where each row has one entry, and :math:`\sqrt{M T}`. It is that of the table without rounding.
        """
        self._normalize()
        # Of a copy: this may be differentiated when the table is normalized again.
        return hoyer(self.weight.clone().flatten(0, 1))

    def _normalize(self) -> None:
        with torch.no_grad():
            self.weight.copy_(normalized_rows(self.weight.flatten(0, 1)).view_as(self.weight))

    def extra_repr(self) -> str:
        """Show the arguments in ``print(encoder)``."""
        shown = (
            f"lines={self.lines}, timesteps={self.timesteps}, bits={self.bits}, low={self.low:g}, high={self.high:g}"
        )
        for name in ("channels", "pattern_bits"):
            value = getattr(self, name)
            shown += "" if value is None else f", {name}={value}"
        return shown


def _normalize_before(encoder: TableEncoder, prefix: str, keep_vars: bool) -> None:
    """Have ``state_dict()`` give the table as it is used."""
    encoder._normalize()


def _as_bits(argument: str, value: int) -> int:
    bits = as_integer(argument, value)
    if bits > _MOST_BITS:
        raise ValueError(f"Expected argument `{argument}` to be at most {_MOST_BITS}, but got {bits}.")
    return bits
