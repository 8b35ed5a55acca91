"""What everybody needs: checks of arguments, batches out of whatever gives them, what is asked of any module."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snnreg_plugins._batches import inputs_of, pairs_of
from snnreg_plugins._checks import as_flag, as_integer, as_integers, as_name, as_names, as_number, as_percent, one_of
from snnreg_plugins._models import device_of, dtype_of, eval_and_back, names_of, require_sizes

X, Y = torch.arange(10.0).reshape(5, 2), torch.arange(5)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3), "3", "+03"])
def test_integers(value):
    found = as_integer("steps", value, at_least=3)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize(
    "value", [2, 3.0, True, np.True_, "3.0", "", "many", None, torch.tensor([3]), torch.tensor(True), float("nan")]
)
def test_no_integers(value):
    sentence = f"Expected argument `steps` to be an integer of at least 3, but got {value!r}."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        as_integer("steps", value, at_least=3)
    with pytest.raises(ValueError, match="an integer of at least 1, but got True"):
        as_integer("steps", True)
    with pytest.raises(ValueError, match=r"an integer of at least 1 and below 2\*\*63, but got 9223372036854775808"):
        as_integer("steps", 2**63)
    assert as_integer("seed", 2**63 - 1) == 2**63 - 1


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), torch.tensor(0.5), np.float64(1), "0.5", "5e-1"])
def test_numbers(value):
    found = as_number("share", value, "(0, 1]")
    assert found == float(value)
    assert type(found) in (int, float)


@pytest.mark.parametrize(
    "value", [0, 1.1, True, "half", "nan", None, torch.tensor([0.5]), float("nan"), -float("inf"), 1j]
)
def test_no_numbers(value):
    with pytest.raises(ValueError, match=r"argument `share` to be in \(0, 1\], but got " + re.escape(repr(value))):
        as_number("share", value, "(0, 1]")


def test_a_number_too_large_for_a_float_is_none():
    for value in (10**400, -(10**5000)):
        with pytest.raises(ValueError, match=r"argument `x` to be finite and at least 0, but got .{1,150}\.$"):
            as_number("x", value, "[0, inf)")


def test_percentiles():
    assert as_percent("percent", "99.9") == 99.9
    assert as_percent("percent", 100) == 100
    for value, sentence in [
        (0.999, "in percent, but got the share 0.999. Write 99.9."),
        (1, "in percent, but got the share 1. Write 100."),
        (0, "in (0, 100], but got 0."),
        (100.5, "in (0, 100], but got 100.5."),
        (True, "in (0, 100], but got True."),
    ]:
        with pytest.raises(ValueError, match=re.escape(f"Expected argument `percent` to be {sentence}")):
            as_percent("percent", value)
    assert as_percent("percent", 100 * 0.999) == pytest.approx(99.9)  # what the remedy says


@pytest.mark.parametrize(
    "value", [(1, 2), [1, 2], np.array([1, 2]), torch.tensor([1, 2]), torch.Size([1, 2]), ["1", 2]]
)
def test_several_integers(value):
    found = as_integers("steps", value, such_as=(1, 2, 4))
    assert found == (1, 2)
    assert all(type(number) is int for number in found)


@pytest.mark.parametrize(
    "value", [4, "12", b"12", (), [0, 1], [1.5], None, torch.tensor(4), np.ones((2, 2), int), {1: 2.5}.values()]
)
def test_no_several_integers(value):
    with pytest.raises(
        ValueError, match=r"`steps` to be one or more integers of at least 1, such as \(1, 2, 4\), but got"
    ):
        as_integers("steps", value, such_as=(1, 2, 4))


def test_names():
    assert as_name("until", "fc") == "fc"
    assert as_name("until", None) is None
    assert as_names("layers", "fc*") == ["fc*"]
    assert as_names("layers", ("a", "b")) == ["a", "b"]
    assert as_names("layers", None) is None
    for value in (3, [], ["a", 3], True, nn.ReLU):
        with pytest.raises(ValueError, match="`layers` to be one or more names or None, but got"):
            as_names("layers", value)
    with pytest.raises(ValueError, match=r"`until` to be a name or None, but got \['a'\]"):
        as_name("until", ["a"])


def test_values_are_shown_in_short():
    lists = [1]
    for _ in range(40):
        lists = [lists] * 9  # written in full, longer than any memory
    own = type("Own", (), {"__repr__": lambda self: 1 / 0})
    for value in (lists, "x" * 10_000, [10**5000], torch.zeros(100, 100), dict.fromkeys(range(9), lists), own()):
        with pytest.raises(ValueError, match="to be True or False, but got") as caught:
            as_flag("x", value)
        assert len(str(caught.value)) < 700


def test_ends_of_an_interval():
    assert as_number("x", 0, "[0, 1)") == 0
    assert as_number("x", 1e30, "[0, inf)") == 1e30
    for value, interval, sentence in [
        (1, "[0, 1)", r"in \[0, 1\)"),
        (-1, "[0, inf)", "finite and at least 0"),
        (float("inf"), "[0, inf)", "finite and at least 0"),
        (0, "(0, inf)", "finite and above 0"),
    ]:
        with pytest.raises(ValueError, match=f"argument `x` to be {sentence}, but got {value}"):
            as_number("x", value, interval)


def test_choices():
    assert one_of("bits", np.int64(8), (16, 8)) == 8
    assert one_of("method", "a", {"a": 1}) == "a"
    for value, choices in [(True, (1, 2)), (8.0, (16, 8)), ("b", ("a",)), (["a"], ("a",)), (torch.zeros(2), ("a",))]:
        with pytest.raises(ValueError, match=r"argument `x` to be one of \["):
            one_of("x", value, choices)


def test_flags():
    assert as_flag("x", np.True_) is True
    for value in ("false", 0, None):
        with pytest.raises(ValueError, match="argument `x` to be True or False"):
            as_flag("x", value)


GIVERS = {
    "tensors": lambda: [X[:3], X[3:]],
    "pairs": lambda: [(X[:3], Y[:3]), (X[3:], Y[3:])],
    "lists": lambda: ([x, y] for x, y in [(X[:3], Y[:3]), (X[3:], Y[3:])]),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3),
    "empty ones between": lambda: iter([(X[:3], Y[:3]), (X[:0], Y[:0]), (X[3:], Y[3:])]),
}


@pytest.mark.parametrize("giver", GIVERS)
def test_inputs(giver):
    found = list(inputs_of(GIVERS[giver]()))
    assert [len(batch) for batch in found] == [3, 2]
    assert torch.equal(torch.cat(found), X)


@pytest.mark.parametrize("giver", sorted(set(GIVERS) - {"tensors"}))
def test_pairs(giver):
    inputs, targets = zip(*pairs_of(GIVERS[giver]()), strict=True)
    assert torch.equal(torch.cat(inputs), X)
    assert torch.equal(torch.cat(targets), Y)


def test_a_tensor_is_walked_in_batches():
    assert [len(batch) for batch in inputs_of(torch.zeros(600, 2))] == [256, 256, 88]
    assert next(inputs_of(X, "meta")).is_meta


NOTHING = {
    "a dataset, which gives single samples": TensorDataset(X, Y),
    "pass its `train_dataloader": LightningDataModule(),
    r"tensor\(1.\)": torch.tensor(1.0),
    "'data'": "data",
    "{'x': ": {"x": X},
    "3": 3,
    "None": None,
    r"a batch of type float": [1.0],
    "a single sample with its target. Wrap the data in a DataLoader": list(TensorDataset(X, Y)),
    "a single sample with its target. Wrap": [(X[0], 3)],
    r"tensors of 2 and 1 dimensions. If they are inputs and their targets, pass \[": (X, Y),
}


@pytest.mark.parametrize("sentence", NOTHING)
@pytest.mark.parametrize("reader", [inputs_of, pairs_of])
def test_no_batches(reader, sentence):
    with pytest.raises(TypeError, match=f"Expected argument `here` to .*, but got .*{sentence}"):
        list(reader(NOTHING[sentence], argument="here"))


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (X, "a batch of type Tensor"),
        ((X,), "a batch of Tensor"),
        ((X, Y, Y), "a batch of Tensor, Tensor, Tensor"),
        ((X, "y"), "a batch of Tensor, str"),
        ((), "a batch of nothing"),
        ((Y[0], Y[0]), "a batch that is a single number"),
    ],
)
def test_no_pairs(batch, sentence):
    with pytest.raises(TypeError, match=f"`data` to give .* pairs .* but got .*{sentence}"):
        list(pairs_of([batch]))


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ((), "a batch of type tuple"),
        (("x", X), "a batch of type str"),
        (Y[0], "a batch that is a single number"),
        (X.numpy(), r"a batch of type ndarray. Make tensors of it: torch.as_tensor\(batch\)."),
        ({"image": X}, r"a batch of type dict. Take the inputs out of them: \(batch\['image'\] for batch in data\)."),
        (X.to_sparse(), "a batch of torch.sparse_coo and torch.float32"),
        (X.to(torch.complex64), "a batch of torch.strided and torch.complex64"),
        (X.to("meta"), "a batch on the meta device, which has no values"),
    ],
)
def test_no_inputs(batch, sentence):
    with pytest.raises(TypeError, match=f"`calibration` to be a tensor, .* but got {sentence}"):
        list(inputs_of([batch]))


def test_device_and_dtype_of_any_module():
    assert device_of(nn.Linear(2, 3, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.ReLU(), "meta") == torch.device("meta")
    assert dtype_of(nn.Linear(2, 3).half()) == torch.float16
    assert dtype_of(nn.BatchNorm1d(2, affine=False).double()) == torch.float64
    assert dtype_of(nn.ReLU()) == torch.float32
    codes = nn.Sequential(nn.ParameterList([nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)]))
    assert dtype_of(codes.append(nn.Linear(2, 3).double())) == torch.float64


def test_what_a_remedy_says_works():
    for remedy in (DataLoader(TensorDataset(X, Y), batch_size=5), [(X, Y)], [torch.as_tensor(X.numpy())]):
        assert torch.equal(torch.cat(list(inputs_of(remedy))), X)
    data = [{"image": X}]
    assert torch.equal(torch.cat(list(inputs_of(batch["image"] for batch in data))), X)


def test_lazy_layers_are_said():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()))
    with pytest.raises(ValueError, match="one of Sequential is lazy: '1.0'. Call it on a batch first, as in `model"):
        require_sizes(model)
    model(torch.rand(5, 2))
    require_sizes(model)


def test_names_of_shared_modules():
    shared = nn.ReLU()
    model = nn.Sequential(shared, nn.Sequential(shared))
    assert names_of(model) == {model: "", shared: "0", model[1]: "1"}


def test_every_module_gets_its_own_mode_back():
    class Own(nn.Sequential):
        def train(self, mode=True):
            raise AssertionError("is the user's own")

    model = Own(nn.Dropout(), nn.Dropout().eval())
    with contextlib.suppress(KeyError), eval_and_back(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, False]
