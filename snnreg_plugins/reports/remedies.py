"""Why a layer of neurons is off from its activation, and which options of an export help."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import NamedTuple

# Channels differ a lot if the largest maximum is so many times the median one.
_SPREAD = 2.0


_MOST = 3


class LayerError(NamedTuple):
    """A layer that loses much, and the options that its network was made with.

    Args:
        added: The error that the layer adds to that of the layers before; this and others relative to its mean
            activation.
        clipping: The error that clipping makes.
        rounding: The error that rounding makes.
        missing: The error that dead neurons make.
        dead: Share of dead neurons.
        spread: Largest maximum of a channel, over the median one.
        timesteps: T of the run.
        threshold: An option of :func:`~snnreg_plugins.to_snntorch`, as all below.
        percent: See there.
        per_channel: See there.
        initial_potential: See there.
        correction: See there.
        beta: See there.
        compensate_leak: See there.
        coding: See there.
    """

    added: float
    clipping: float
    rounding: float
    missing: float
    dead: float
    spread: float
    timesteps: int
    threshold: str = "custom"
    percent: float = 100.0
    per_channel: bool = False
    initial_potential: float = 0.5
    correction: str = "none"
    beta: float = 1.0
    compensate_leak: bool = True
    coding: str = "constant"

    @property
    def twice(self) -> int:
        """Twice the time steps."""
        return 2 * self.timesteps

    @property
    def dead_in_percent(self) -> str:
        """The share of neurons that are dead."""
        return f"{100 * self.dead:.1f} %"

    @property
    def higher(self) -> str:
        """The percentile with a tenth above it."""
        return f"{100 - (100 - self.percent) / 10:.8g}"


_EXACT = ("max", "spike_norm", "learned")  # clip nothing on the calibration data


_FIXED = ("mmse", "learned")


def _always(_: LayerError) -> bool:
    return True


def _own_channels(error: LayerError) -> bool:
    return not error.per_channel and error.threshold != "learned" and error.spread >= _SPREAD


def _higher_percent(error: LayerError) -> bool:
    # It makes rounding worse.
    return error.threshold == "percentile" and error.percent < 100 and error.clipping > error.rounding


def _uncorrected(error: LayerError) -> bool:
    return error.correction == "none"


#: What a cause does; and what to try: when it applies, and what it is.
CAUSES: dict[str, tuple[str, list[tuple[Callable[[LayerError], bool], str]]]] = {
    "clipping": (
        "activations above what a spike is worth are clipped",
        [
            (_higher_percent, "percent={error.higher}"),
            (lambda error: error.threshold not in ("mmse", *_EXACT), 'threshold="mmse"'),
            (lambda error: error.threshold == "mmse", "timesteps={error.twice}"),
            (lambda error: error.threshold in _EXACT, "calibration data that hold such inputs"),
        ],
    ),
    "rounding": (
        "rates are multiples of 1/{error.timesteps}",
        [
            (lambda error: error.initial_potential != 0.5 and _uncorrected(error), "initial_potential=0.5"),
            (_own_channels, "per_channel=True"),
            (_always, "timesteps={error.twice}"),
            (lambda error: error.threshold not in _FIXED, 'threshold="mmse"'),
            (_uncorrected, 'correction="potential"'),
        ],
    ),
    "timing": (
        "spikes arrive unevenly",
        [
            (lambda error: error.coding != "constant", 'coding="constant"'),
            (lambda error: error.correction not in ("potential", "channel_potential"), 'correction="potential"'),
            (_always, "timesteps={error.twice}"),
        ],
    ),
    "leak": (
        "potentials leak",
        [
            (_always, "beta=1.0"),
            (lambda error: not error.compensate_leak, "compensate_leak=True"),
            (_uncorrected, 'correction="bias"'),
        ],
    ),
    "dead": (
        "{error.dead_in_percent} of its neurons never spike though the DNN's are active",
        [
            (_own_channels, "per_channel=True"),
            (_always, "timesteps={error.twice}"),
            (_uncorrected, 'correction="potential"'),
            (_always, "a weaker penalty in training"),
        ],
    ),
}


def advise(error: LayerError) -> tuple[str, str, tuple[str, ...]]:
    """Find out why a layer is off, and what to try.

    Returns:
        The largest cause, one of :data:`CAUSES`; what it does, and what others do that are at least half as large; and
        at most three remedies, none of them set already.

    Example:
        >>> advise(LayerError(0.3, 0.2, 0.0, 0.0, 0.0, 1.0, timesteps=8, threshold="percentile", percent=99.0))
        ('clipping', 'activations above what a spike is worth are clipped', ('percent=99.9', 'threshold="mmse"'))
    """
    parts = {"clipping": error.clipping, "rounding": error.rounding}
    parts["leak" if error.beta < 1 else "timing"] = error.added - error.clipping - error.rounding
    causes = sorted(parts, key=lambda name: parts[name], reverse=True)
    causes = [name for name in causes if parts[name] >= parts[causes[0]] / 2]
    if causes[0] != "clipping" and error.missing > error.added / 2:
        causes = ["dead"]
    why = " and ".join(CAUSES[name][0].format(error=error) for name in causes)
    tables = [[text.format(error=error) for applies, text in CAUSES[name][1] if applies(error)] for name in causes]
    # The first of each cause, then the second ones; each once.
    remedies = [remedy for row in zip_longest(*tables) for remedy in row if remedy is not None]
    return causes[0], why, tuple(dict.fromkeys(remedies))[:_MOST]
