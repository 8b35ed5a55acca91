"""Which layers have synapses, how many an input position reaches, and how many events arrive there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snnreg_plugins._checks import as_sizes

TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED_CONVOLUTIONS)


class OneToOne(nn.Module):
    r"""One synapse from each neuron to its own target: what carries spikes over an identity shortcut.

    .. math:: y_i = w_i x_i

    Args:
        weight: w, shaped to broadcast over a sample: a scalar, ``(C, 1, 1)``, ...

    Example:
        >>> OneToOne(torch.tensor([2.0, 3.0]))(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
        [[2.0, 0.0], [2.0, 3.0]]
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh ``(B, ...)``."""
        return x * self.weight

    def extra_repr(self) -> str:
        """Show the shape of the weight."""
        return f"weight={tuple(self.weight.shape)}"


#: The layers that multiply activity by weights.
SYNAPTIC_LAYERS = (nn.Linear, *CONVOLUTIONS, OneToOne)

SynapticLayer: TypeAlias = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
    | OneToOne
)

# In half precision a sum would be rounded.
_SUMMED_IN = {torch.float16: torch.float32, torch.bfloat16: torch.float32}

# Below this every integer is exact in float32, so that sums of events stay exact in any order.
_EXACT_FLOAT32 = 2**24


def is_synaptic(module: nn.Module) -> TypeGuard[SynapticLayer]:
    """Tell whether ``module`` multiplies activity by weights (one of :data:`SYNAPTIC_LAYERS`)."""
    return isinstance(module, SYNAPTIC_LAYERS)


def fan_out(layer: SynapticLayer, input_shape: Sequence[int]) -> Tensor:
    r"""Count the synapses that each input position of a layer really reaches.

    One event at position :math:`i` costs :math:`\text{fan\_out}_i` synaptic operations. Borders, stride,
    dilation, groups, padding (a number, ``"same"``, any padding mode) and output padding are honoured: a
    position at the border of an unpadded convolution reaches fewer outputs than one in the middle, one that
    reflection padding repeats reaches more. A weight of zero is still a synapse; the bias is none.

    Args:
        layer: A synaptic layer.
        input_shape: Shape of one input without the batch: ``(..., in_features)`` for Linear,
            ``(C, *spatial)`` for convolutions, any for OneToOne.

    Returns:
        Integers (int64) of shape ``input_shape``, on the CPU; an expanded view, so clone it before writing.

    Raises:
        TypeError: If ``layer`` is no synaptic layer.
        ValueError: If ``input_shape`` does not fit the layer.

    Example:
        >>> from torch import nn
        >>> fan_out(nn.Conv2d(1, 2, kernel_size=3), (1, 4, 4))[0]
        tensor([[2, 4, 4, 2],
                [4, 8, 8, 4],
                [4, 8, 8, 4],
                [2, 4, 4, 2]])
        >>> fan_out(nn.Linear(3, 10), (3,))
        tensor([10, 10, 10])
    """
    _require_synaptic(layer)
    shape = as_sizes("input_shape", input_shape)
    if isinstance(layer, nn.Linear):
        if not shape or shape[-1] != layer.in_features:
            raise ValueError(
                f"Expected argument `input_shape` to end in the layer's {layer.in_features} input features, "
                f"but got {shape}."
            )
        return torch.tensor(layer.out_features).expand(shape)
    if isinstance(layer, OneToOne):
        if not _broadcasts(layer.weight.shape, shape):
            raise ValueError(
                f"Expected argument `input_shape` to take weights of {tuple(layer.weight.shape)}, but got {shape}."
            )
        return torch.tensor(1).expand(shape)
    if len(shape) != 1 + len(layer.kernel_size) or shape[0] != layer.in_channels:
        raise ValueError(
            f"Expected argument `input_shape` to be (C, *spatial) with C = {layer.in_channels} and "
            f"{len(layer.kernel_size)} spatial dimension(s), without the batch, but got {shape}."
        )
    # Whether a kernel tap hits an output is decided in each dimension alone: the map is an outer product.
    reached: Tensor = torch.tensor(layer.out_channels // layer.groups)
    for dim, size in enumerate(shape[1:]):
        reached = reached.unsqueeze(-1) * _reach(layer, dim, size)
    return reached.expand(shape)


def _broadcasts(weight: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether weights apply to every position of a shape, and to no more."""
    padded = (1,) * (len(shape) - len(weight)) + tuple(weight)
    return len(padded) == len(shape) and all(a in (1, b) for a, b in zip(padded, shape, strict=True))


def _reach(layer: Any, dim: int, size: int) -> Tensor:
    """Count, for the ``size`` positions of one dimension, the (output, kernel tap) pairs that use each."""
    kernel, stride, dilation = layer.kernel_size[dim], layer.stride[dim], layer.dilation[dim]
    span = dilation * (kernel - 1)
    if isinstance(layer, TRANSPOSED_CONVOLUTIONS):
        padding = layer.padding[dim]
        outputs = (size - 1) * stride - 2 * padding + span + layer.output_padding[dim] + 1
        _require_output(outputs, layer, size)
        target = torch.arange(size).unsqueeze(1) * stride + torch.arange(kernel) * dilation - padding
        hits: Tensor = (target >= 0) & (target < outputs)
        return hits.sum(1)

    if layer.padding == "same":
        before, after = span // 2, span - span // 2
    elif layer.padding == "valid":
        before = after = 0
    else:
        before = after = layer.padding[dim]
    # Pad the positions themselves as the layer pads its input; a tap on a zero pad (-1) is no synapse.
    positions = torch.arange(size, dtype=torch.float64).reshape(1, 1, size)
    if layer.padding_mode == "zeros":
        positions = F.pad(positions, (before, after), value=-1.0)
    else:
        try:
            positions = F.pad(positions, (before, after), mode=layer.padding_mode)
        except RuntimeError as error:
            raise ValueError(
                f"Expected argument `input_shape` to be large enough to pad for {layer}, but got a size of {size}."
            ) from error
    _require_output(positions.shape[-1] - span, layer, size)
    taps = positions.flatten().long().unfold(0, span + 1, stride)[:, ::dilation].flatten()
    return torch.bincount(taps[taps >= 0], minlength=size)


def _require_output(outputs: int, layer: nn.Module, size: int) -> None:
    if outputs < 1:
        raise ValueError(
            f"Expected argument `input_shape` to give {layer} at least one output, but a size of {size} gives none."
        )


def _require_synaptic(layer: nn.Module) -> None:
    if not is_synaptic(layer):
        raise TypeError(
            "Expected argument `layer` to be Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d or OneToOne, "
            f"but got {type(layer).__name__}."
        )


def dense_macs(layer: SynapticLayer, input_shape: Sequence[int]) -> int:
    r"""Count the multiply-accumulates of a layer when no input is skipped.

    .. math:: \text{MACs} = \sum_i \text{fan\_out}_i

    Products with padded zeros are not counted: no input is there.

    Args:
        layer: A synaptic layer.
        input_shape: Shape of one input without the batch.

    Returns:
        MACs per sample.

    Raises:
        TypeError: If ``layer`` is no synaptic layer.
        ValueError: If ``input_shape`` does not fit the layer.

    Example:
        >>> from torch import nn
        >>> dense_macs(nn.Conv2d(1, 2, kernel_size=3), (1, 4, 4))
        72
    """
    return int(fan_out(layer, input_shape).sum())


def is_integer_valued(x: Tensor) -> bool:
    """Tell whether all values are whole numbers, so that the tensor counts events.

    Spikes (0, 1), sums of spikes (0..k²) and ternary spikes (-1, 0, 1) are; an image in [0, 1] or an
    activation is not.

    Example:
        >>> is_integer_valued(torch.tensor([0.0, 1.0, 4.0])), is_integer_valued(torch.tensor([0.0, 0.5]))
        (True, False)
    """
    if not x.is_floating_point():
        return not x.is_complex()
    x = x.detach()
    return not _sums_to_fraction(x) and not any(_have_fractions(x.abs().unsqueeze(0)))


def operations(layer: SynapticLayer, x: Tensor, fan_out_map: Tensor | None = None) -> tuple[int, int, int]:
    r"""Count what a layer's input costs: synaptic operations, effective and dense MACs.

    .. math::
        \text{SOPs} = \sum_i |x_i| \cdot \text{fan\_out}_i \qquad
        \text{effective MACs} = \sum_i [x_i \neq 0] \cdot \text{fan\_out}_i \qquad
        \text{dense MACs} = \sum_i \text{fan\_out}_i

    Integer-valued input is a count of events and gives SOPs (and no effective MACs); any other input is real
    and gives effective MACs (and no SOPs). All are exact integers.

    Args:
        layer: A synaptic layer.
        x: Its input, with or without the batch; sums run over the batch too.
        fan_out_map: :func:`fan_out` of the layer for one sample of ``x``, where it is known already.

    Returns:
        SOPs, effective MACs, dense MACs; summed over all samples of ``x``.

    Raises:
        TypeError: If ``layer`` is no synaptic layer.
        ValueError: If the shape of ``x`` does not fit the layer.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(4, 10)
        >>> operations(layer, torch.tensor([[0.0, 1.0, 0.0, 2.0]]))
        (30, 0, 40)
        >>> operations(layer, torch.tensor([[0.0, 0.3, 0.0, 1.0]]))
        (0, 20, 40)
    """
    return Synapses(layer, fan_out(layer, sample_shape(layer, x)) if fan_out_map is None else fan_out_map).count(x)


def count_events(x: Tensor) -> int:
    """Count the events in a tensor: Σ|x| where it is integer-valued, else its non-zero entries.

    Example:
        >>> count_events(torch.tensor([0.0, 1.0, 3.0])), count_events(torch.tensor([0.0, 0.1, 3.0]))
        (4, 2)
    """
    return int(_events(x)[0][1])


def count_events_by_step(x: Tensor, steps: int) -> list[int]:
    """Count the events, as :func:`count_events` does, in each of the equal parts along the first dimension.

    Example:
        >>> count_events_by_step(torch.tensor([0.0, 1.0, 3.0, 0.0]), steps=2)
        [1, 3]
    """
    return [int(events) for _, events in _events(x, steps)]


def count_known_events(x: Tensor, steps: int) -> list[int] | None:
    """Count the same where all are known to be whole numbers that are not negative: one sum.

    Returns:
        None where that is not exact, or shows that they are none.

    Example:
        >>> count_known_events(torch.tensor([0.0, 1.0, 3.0, 0.0]), steps=2)
        [1, 3]
        >>> count_known_events(torch.tensor([0.5, 1.0]), steps=1)
    """
    x = _in_memory_order(x.detach())
    if not x.is_floating_point() or not x.is_contiguous() or not x.numel():
        return None
    return _whole(x.view(steps, -1).sum(1, dtype=_SUMMED_IN.get(x.dtype)).tolist())


def sample_shape(layer: SynapticLayer, x: Tensor) -> tuple[int, ...]:
    """Return the shape of one sample of a layer's input, without batch and leading dimensions."""
    _require_synaptic(layer)
    return sample_shape_of(layer, tuple(x.shape))


def sample_shape_of(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the same of an input of some shape; of what is no synaptic layer, as for one-to-one synapses."""
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
        return shape[1:]
    return shape[-1:] if isinstance(layer, nn.Linear) else shape[-1 - len(layer.kernel_size) :]


class Synapses:
    """The synapses of a layer for inputs of one shape, prepared so that counting takes little time.

    Args:
        layer: A synaptic layer; None for weights all of whose inputs reach as many.
        fan_out_map: Its :func:`fan_out` for that shape.
    """

    def __init__(self, layer: SynapticLayer | None, fan_out_map: Tensor) -> None:
        # All channels of a convolution have the same fan-out, and so have all features of a linear layer.
        positions = fan_out_map[(0,) if isinstance(layer, CONVOLUTIONS) else (0,) * fan_out_map.dim()].double().cpu()
        self.inputs = fan_out_map.numel()
        self.dense = int(fan_out_map.sum())
        self.least = float(positions.where(positions > 0, torch.inf).min())
        self.positions = None if positions.eq(self.least).all() else positions
        self._map = fan_out_map
        self._weights: dict[tuple[bool, torch.dtype], Tensor] = {}

    def count_known(self, x: Tensor, steps: int) -> list[int] | None:
        """Count the SOPs of each of the equal parts of an input known to hold whole numbers that are not negative.

        Returns:
            None where that is not exact, or shows that they are none.
        """
        if self.positions is None:
            events = count_known_events(x, steps)
            return None if events is None else [int(self.least) * number for number in events]
        x = x.detach()
        ordered = _in_memory_order(x)
        if not _sums_products_exactly(x) or not ordered.is_contiguous() or not x.numel():
            return None
        key = ordered is x, x.dtype
        if key not in self._weights:
            self._weights[key] = _in_order(self._map, key[0]).to(x.dtype).flatten()
        # The product with a vector reads the input once, and makes nothing as large.
        costs = ordered.view(x.shape[0], -1).mv(self._weights[key]).view(steps, -1)
        found = _whole(costs.sum(1).tolist())
        if found is None and float(costs.max()) < _EXACT_FLOAT32:
            found = _whole(costs.sum(1, dtype=torch.float64).tolist(), 2**53)
        return found

    def count(self, x: Tensor, real: bool = True) -> tuple[int, int, int]:
        """Count SOPs, effective and dense MACs of an input, as :func:`operations` does.

        Args:
            x: Input of the layer.
            real: Whether to expect a real-valued one: a wrong guess costs time, no more.
        """
        return self.count_steps(x, 1, real)[0]

    def count_steps(self, x: Tensor, steps: int, real: bool = True) -> list[tuple[int, int, int]]:
        """Count for each of the equal parts that the first dimension of an input is made of.

        Args:
            x: Input of the layer, ``(steps * B, ...)``.
            steps: Number of parts.
            real: Whether to expect a real-valued one.
        """
        dense = x.numel() // steps // max(1, self.inputs) * self.dense
        is_real = steps == 1 and real and x.is_floating_point() and self._has_fraction(x.detach())
        if is_real and float(x.detach().abs().amin()) > 0:  # no zero to skip, as in many images
            return [(0, dense, dense)]
        counted = []
        for spiking, total in _events(x, steps, self.positions, 1.0 if self.positions is None else self.least, real):
            cost = int(total) * (int(self.least) if self.positions is None else 1)
            counted.append((cost, 0, dense) if spiking else (0, cost, dense))
        return counted

    def _has_fraction(self, x: Tensor) -> bool:
        """Find a fraction in the first sample, in its middle or in its sum; one that is missed costs time, no more."""
        middle = x.view(-1)[self.inputs // 2] if x.is_contiguous() and x.numel() else x.new_zeros(())
        return float(middle) % 1 > 0 or _sums_to_fraction(x)


def _events(
    x: Tensor, steps: int = 1, weight: Tensor | None = None, least: float = 1.0, real: bool = True
) -> list[tuple[bool, float]]:
    """Tell for each step whether it is integer-valued, and sum its events, by the weight of their positions if any."""
    x = x.detach() if x.is_floating_point() else x.detach().double()
    x = x.reshape(steps, x.shape[0] // steps, *x.shape[1:]) if steps > 1 else x.unsqueeze(0)
    rest = tuple(range(1, x.dim() - (0 if weight is None else weight.dim())))

    def weigh(counts: Tensor, dtype: torch.dtype = torch.float32) -> list[float]:
        sums = counts.sum(rest, dtype=dtype) if rest else counts
        weighted = sums if weight is None else (sums.cpu() * weight).flatten(1).sum(1)
        return weighted.tolist()

    def totals(counts: Callable[[], Tensor], known: list[float] | None = None) -> list[float]:
        # A float32 sum of whole numbers only grows: one that ends below 2**24 was exact all the way. No sum is above
        # total / least, but those that do not matter.
        found = weigh(counts()) if known is None else known
        return weigh(counts(), torch.int64) if max(found) >= _EXACT_FLOAT32 * least else found

    # Felt in the time of a forward pass: each call of a tensor function, and each temporary as large as the input.
    if real and _sums_to_fraction(x[0]) and steps == 1:
        return [(False, totals(lambda: x.sign().abs_())[0])]
    magnitudes = x.abs()
    events = weigh(magnitudes)
    spiking = [not fraction for fraction in _have_fractions(magnitudes)]
    active = events if all(spiking) else totals(lambda: x.sign().abs_())
    events = totals(x.abs, events) if any(spiking) else active
    return [(one, of_events if one else others) for one, of_events, others in zip(spiking, events, active, strict=True)]


def _in_memory_order(x: Tensor) -> Tensor:
    """Put channels last where they are so in memory."""
    return x if x.is_contiguous() or x.dim() < 3 else x.movedim(1, -1)


def _in_order(fan_out_map: Tensor, channels_first: bool) -> Tensor:
    return fan_out_map if channels_first else fan_out_map.movedim(0, -1)


def _sums_products_exactly(x: Tensor) -> bool:
    """Tell whether a matrix product rounds nothing but sums above 2**24."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and torch.get_float32_matmul_precision() == "highest"
        and not torch.is_autocast_enabled("cpu")
    )


def _whole(sums: list[float], limit: int = _EXACT_FLOAT32) -> list[int] | None:
    """Give sums as integers; None where one may be rounded: a sum in float32 of whole numbers only grows."""
    return [int(each) for each in sums] if all(0 <= each < limit and each.is_integer() for each in sums) else None


def _sums_to_fraction(x: Tensor) -> bool:
    """Tell whether the first sample sums to a fraction: whole numbers never do, real ones nearly always."""
    return x.dim() > 0 and len(x) > 0 and bool(float(x[0].sum(dtype=torch.float32)) % 1 > 0)


def _have_fractions(magnitudes: Tensor) -> list[bool]:
    """Tell which rows of numbers ≥ 0, which are overwritten, have a fraction (or NaN, or infinity)."""
    if magnitudes.numel() == 0:
        return [False] * len(magnitudes)
    # Of the ways to ask for a non-zero, `amax` is vectorized; `any`, `equal` and `count_nonzero` are not. Over all
    # dimensions at once, as flattening might copy.
    fractions, rest = magnitudes.frac_(), tuple(range(1, magnitudes.dim()))
    return [bool(largest) for largest in (fractions.amax(rest) if rest else fractions).tolist()]
