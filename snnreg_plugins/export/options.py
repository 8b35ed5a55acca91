"""The options of an export: their names, defaults and checks, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, fx
from typing_extensions import TypedDict

from snnreg_plugins._checks import as_flag, as_integer, as_name, as_number, as_percent, one_of, shown
from snnreg_plugins.export.calibrate import OTHER_METHODS, Threshold, threshold_function
from snnreg_plugins.export.input_code import CODES, CodeSettings
from snnreg_plugins.export.simulate import Adjustment, correct_bias, correct_potential
from snnreg_plugins.frameworks.base import Target
from snnreg_plugins.frameworks.registry import target_of
from snnreg_plugins.frameworks.surrogate import SURROGATES
from snnreg_plugins.functional.draws import DISTRIBUTIONS
from snnreg_plugins.functional.fewbits import FEW_BITS, checked_bits
from snnreg_plugins.spiking.inputs import checked_time_dim, require_uncoded

# What options may be; the values themselves are those of the tables that are imported here.
Method: TypeAlias = Literal["percentile", "max", "mmse", "local", "spike_norm", "learned", "auto"]
Correction: TypeAlias = Literal["none", "potential", "channel_potential", "bias"]
Coding: TypeAlias = Literal["constant", "poisson", "latency", "neurons"]
Surrogate: TypeAlias = Literal["arctan", "fast_sigmoid", "gaussian", "rectangular", "sigmoid", "triangular"]
BatchNorm: TypeAlias = Literal["fold", "keep"]
Trained: TypeAlias = Literal["none", "layer", "channel", "neuron"]
Heterogeneity: TypeAlias = Literal["none", "gamma", "lognormal", "normal", "uniform"]
Weights: TypeAlias = Literal["float", "int8", "power_of_two"]

#: Corrections of what thresholds leave, by name.
CORRECTIONS: dict[str, list[Adjustment]] = {
    "none": [],
    "potential": [correct_potential],
    "channel_potential": [partial(correct_potential, per_neuron=False)],
    "bias": [correct_bias],
}
#: Those that are means over channels, or nothing.
BY_CHANNEL = ("none", "channel_potential", "bias")
#: How many thresholds, or decays, of a layer are trained.
TRAINED = ("none", "layer", "channel", "neuron")
#: What ``threshold="auto"`` chooses.
CHOSEN = ("threshold", "percent", "per_channel", "correction")


class Settled(NamedTuple):
    """Options that ``"auto"`` chooses unless they are given, and what they are where nothing chooses."""

    percent: float = 99.9
    per_channel: bool = False
    correction: str = "channel_potential"


class ExportOptions(TypedDict, total=False):
    """Options of :func:`~snnreg_plugins.to_snntorch`, which explains them; as callbacks and the command line take them.

    Args:
        threshold: How thresholds are chosen from activations.
        percent: Which percentile, above 1 and at most 100; 99.9 if None.
        per_channel: One threshold per channel instead of one per layer, which it is if None.
        initial_potential: Initial potential as a share of the threshold.
        correction: What of each layer corrects the error that is left; ``"channel_potential"`` if None.
        beta: Decay of the potential per step.
        compensate_leak: Whether to make up for a beta below 1.
        coding: How the input arrives.
        until: The last layer to convert; what follows stays a DNN.
        surrogate: The surrogate gradient, by name.
        surrogate_slope: Its slope, in 1 / threshold; that of its name if None.
        time_dim: Dimension of time in inputs; None if they are constant over the steps.
        batch_norm: Whether batch norms are folded into weights, or kept to be trained.
        train_thresholds: Whether thresholds are trained, and how many there are then.
        train_beta: Whether decays are trained, and how many there are then.
        heterogeneity: Distribution that trained thresholds or decays are drawn from to begin with.
        threshold_std: Standard deviation of thresholds, as a share of those that were balanced.
        beta_std: Standard deviation of decays.
        weights: Whether weights are floats, small integers or powers of two.
        weight_bits: Bits of a weight that is no float.
        train_weights: Whether weights of few bits are trained.
        budget: SOPs/sample, on average, that thresholds, time steps and margins of early exit are chosen for.
        auto_tolerance: Points of the DNN's accuracy that ``threshold="auto"`` gives for fewer SOPs.
    """

    threshold: Method
    percent: float | None
    per_channel: bool | None
    initial_potential: float
    correction: Correction | None
    beta: float
    compensate_leak: bool
    coding: Coding
    until: str | None
    surrogate: Surrogate
    surrogate_slope: float | None
    time_dim: int | None
    batch_norm: BatchNorm
    train_thresholds: Trained
    train_beta: Trained
    heterogeneity: Heterogeneity
    threshold_std: float
    beta_std: float
    weights: Weights
    weight_bits: int | None
    train_weights: bool
    budget: float | None
    auto_tolerance: float


@dataclass(frozen=True)
class Options:
    """How to convert; the arguments of :func:`~snnreg_plugins.to_snntorch`."""

    timesteps: int
    threshold: str | Threshold = "percentile"
    percent: float | None = None
    per_channel: bool | None = None
    initial_potential: float = 0.5
    correction: str | None = None
    beta: float = 1.0
    compensate_leak: bool = True
    coding: str = "constant"
    until: str | None = None
    surrogate: str = "fast_sigmoid"
    surrogate_slope: float | None = None
    time_dim: int | None = None
    batch_norm: str = "fold"
    train_thresholds: str = "none"
    train_beta: str = "none"
    heterogeneity: str = "none"
    threshold_std: float = 0.0
    beta_std: float = 0.0
    weights: str = "float"
    weight_bits: int | None = None
    train_weights: bool = False
    budget: float | None = None
    auto_tolerance: float = 0.5

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            ValueError: If an option is unknown or out of range.
            TypeError: If a function is given for the slope of the surrogate gradient.
        """
        if not isinstance(self.threshold, str) or self.threshold not in OTHER_METHODS:
            threshold_function(self.threshold, 100.0)
        if callable(self.surrogate_slope):
            raise TypeError(
                "Expected argument `surrogate_slope` to be a number, the slope of the surrogate in 1 / threshold, but "
                f"got {shown(self.surrogate_slope)}. Pass the 25 of snntorch.surrogate.fast_sigmoid(25); for a "
                f"surrogate that is none of {sorted(SURROGATES)}, export first, and set `spike_grad` of each neuron to "
                "a module that computes it."
            )
        surrogate = one_of("surrogate", self.surrogate, sorted(SURROGATES))
        slope = SURROGATES[surrogate].STEEPNESS if self.surrogate_slope is None else self.surrogate_slope
        for name, value in {
            "timesteps": as_integer("timesteps", self.timesteps),
            "percent": None if self.percent is None else as_percent("percent", self.percent),
            "per_channel": None if self.per_channel is None else as_flag("per_channel", self.per_channel),
            "initial_potential": as_number("initial_potential", self.initial_potential, "[0, 1)"),
            "correction": None
            if self.correction is None
            else one_of("correction", self.correction, sorted(CORRECTIONS)),
            "beta": as_number("beta", self.beta, "(0, 1]"),
            "compensate_leak": as_flag("compensate_leak", self.compensate_leak),
            "coding": one_of("coding", self.coding, sorted(CODES)),
            "until": as_name("until", self.until),
            "surrogate": surrogate,
            "surrogate_slope": as_number("surrogate_slope", slope, "(0, inf)"),
            "time_dim": checked_time_dim(self.time_dim),
            "batch_norm": one_of("batch_norm", self.batch_norm, ("fold", "keep")),
            "train_thresholds": one_of("train_thresholds", self.train_thresholds, TRAINED),
            "train_beta": one_of("train_beta", self.train_beta, TRAINED),
            "heterogeneity": one_of("heterogeneity", self.heterogeneity, ("none", *DISTRIBUTIONS)),
            "threshold_std": as_number("threshold_std", self.threshold_std, "[0, inf)"),
            "beta_std": as_number("beta_std", self.beta_std, "[0, inf)"),
            "weights": one_of("weights", self.weights, ("float", *FEW_BITS)),
            "train_weights": as_flag("train_weights", self.train_weights),
            "budget": None if self.budget is None else as_number("budget", self.budget, "(0, inf)"),
            "auto_tolerance": as_number("auto_tolerance", self.auto_tolerance, "[0, 100]"),
        }.items():
            object.__setattr__(self, name, value)
        if self.train_beta != "none" and self.beta == 1:
            raise ValueError(
                "Expected argument `beta` to be below 1 for `train_beta`, as trained decays are in (0, 1), but got "
                f"{self.beta}. Start from one such as beta=0.95."
            )
        self._require_heterogeneity()
        self._choose_bits()
        if self.threshold != "auto":
            for name, value in self.settled._asdict().items():
                object.__setattr__(self, name, value)
        if self.time_dim is not None:
            require_uncoded(self.coding)
        if self.budget is not None:
            self._require_countable()

    def _require_heterogeneity(self) -> None:
        spreads = {"threshold_std": self.train_thresholds, "beta_std": self.train_beta}
        given = {name: trained for name, trained in spreads.items() if getattr(self, name) > 0}
        if bool(given) != (self.heterogeneity != "none"):
            raise ValueError(
                "Expected argument `heterogeneity` to name the distribution of `threshold_std` or `beta_std`, but got "
                f"{self.heterogeneity!r} with {self.threshold_std:g} and {self.beta_std:g}. Give both, such as "
                "heterogeneity='gamma' and threshold_std=0.2, or none."
            )
        for name, trained in given.items():
            if trained not in ("channel", "neuron"):
                option = "train_thresholds" if name == "threshold_std" else "train_beta"
                raise ValueError(
                    f"Expected argument `{option}` to be 'channel' or 'neuron', so that there are values to differ by "
                    f"`{name}`, but got {trained!r}."
                )

    def _choose_bits(self) -> None:
        if self.weights != "float":
            bits = checked_bits(self.weights, self.weight_bits, "weight_bits")
            object.__setattr__(self, "weight_bits", bits)
        elif self.weight_bits is not None or self.train_weights:
            given = f"weight_bits={self.weight_bits}" if self.weight_bits is not None else "train_weights=True"
            raise ValueError(
                f"Expected argument `weights` to be one of {list(FEW_BITS)} with {given}, but got 'float', which has "
                "no bits to choose and is trained as it is."
            )

    def target(self, framework: str) -> Target:
        """Give what makes the neurons of a framework, by its name."""
        slope = self.surrogate_slope
        assert slope is not None  # resolved above
        return target_of(framework, self.beta, self.surrogate, slope)

    def _require_countable(self) -> None:
        """Refuse a budget that no count of calibration data could hold for."""
        if self.coding == "poisson":
            raise ValueError(
                'Expected argument `budget` to be None with coding="poisson", whose spikes are others at every call, '
                "so that no count holds for the next one. Choose another coding, or time steps by hand."
            )
        if self.weights != "float":
            raise ValueError(
                f"Expected argument `budget` to be None with weights={self.weights!r}, whose integers are made for the "
                "thresholds as they are. Find margins for the network: exit_margins(network, data, sops=...)."
            )

    @property
    def settled(self) -> Settled:
        """The options that may be None."""
        given = {name: getattr(self, name) for name in Settled._fields}
        return Settled(**{name: value for name, value in given.items() if value is not None})

    def in_words(self) -> str:
        """Say how thresholds are chosen, shortly."""
        method = self.remembered()["threshold"]
        percent = f" {self.settled.percent:g}" if method == "percentile" else ""
        return f"{method}{percent}, per {'channel' if self.settled.per_channel else 'layer'}"

    @property
    def is_final(self) -> bool:
        """Whether nothing is left to be folded, fixed or rounded when training ends."""
        return (
            self.batch_norm == "fold" and self.train_thresholds == self.train_beta == "none" and not self.train_weights
        )

    def remembered(self) -> dict[str, Any]:
        """Give the options as plain data; a function by its name."""
        threshold = self.threshold if isinstance(self.threshold, str) else getattr(self.threshold, "__name__", "custom")
        return {**vars(self), "threshold": threshold}


def code_settings(options: Options, traced: fx.GraphModule, like: Tensor) -> CodeSettings:
    """Give what a code of the input goes by.

    Args:
        options: The options.
        traced: A network of :func:`~snnreg_plugins.export.trace.trace`.
        like: A tensor of the network's type, where the network is.
    """
    (name,) = (node.meta["name"] for node in traced.graph.nodes if node.op == "placeholder")
    return CodeSettings(name, options.timesteps, options.beta, options.initial_potential, like)
