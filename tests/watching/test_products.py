"""Products that no layer makes, against brute force: the operands of each product, pair by pair."""

import warnings
from contextlib import nullcontext

import norse.torch as norse
import pytest
import snntorch
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snnreg_plugins import Energy, SynapticOperations
from tests.helpers import brute_force_operations

QUANTITIES = ("sops", "effective_macs", "dense_macs")
CONTEXTS = {
    "grad": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
every_context = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)


def counted(metric, name=""):
    samples = int(metric.samples)
    return tuple(round(metric.by_layer(quantity)[name] * samples) for quantity in QUANTITIES)


def plus(*costs):
    return tuple(map(sum, zip(*costs, strict=True)))


def with_weights(x, fan_out):
    """Cost of activity whose every position reaches ``fan_out`` synapses."""
    values = x.detach().double().flatten().tolist()
    if all(value.is_integer() for value in values):
        return sum(int(abs(value)) for value in values) * fan_out, 0, len(values) * fan_out
    return 0, sum(value != 0 for value in values) * fan_out, len(values) * fan_out


def of_pairs(first, second):
    """Cost of a matrix product of two activities: all triples of row, column and what is summed over."""
    first, second = torch.broadcast_tensors(first.unsqueeze(-1), second.unsqueeze(-3))
    pairs = list(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    return 0, sum(a != 0 and b != 0 for a, b in pairs), len(pairs)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_part_that_torch_compiled_counts_as_what_it_was_made_of():
    inner = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv1d(2, 1, 3)).eval()
    before, behind = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.ReLU()), nn.Sequential(nn.ReLU(), nn.Linear(6, 3))
    for part in (torch.jit.script(inner), torch.jit.freeze(torch.jit.script(inner))):
        with (
            torch.no_grad(),
            SynapticOperations(nn.Sequential(before, inner, behind)) as expected,
            SynapticOperations(compiled := nn.Sequential(before, part, behind)) as sops,
        ):
            for x in torch.randn(6, 4, 8):
                expected.watch.model(x)
                compiled(x)
        for quantity in QUANTITIES:
            assert sops.total(quantity) == expected.total(quantity), quantity


@pytest.mark.filterwarnings("ignore:torch.ao", "ignore:torch.quantize")
def test_weights_that_are_packed_are_named():
    inner = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear}, dtype=torch.qint8)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), inner, nn.ReLU(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match="does not count all: '2.0' .linear_dynamic"), SynapticOperations(net) as sops:
        net(torch.rand(4, 6))
    assert sops.total("dense_macs") == 6 * 8 + 8 * 3


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_layers_that_read_sparse_tensors(layout):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(4, 6) * (torch.rand(4, 6) > 0.5)
    counts = []
    for given in (x, getattr(x, layout)()):
        with torch.no_grad(), warnings.catch_warnings(), SynapticOperations(net) as sops:
            warnings.filterwarnings("error", message="SynapticOperations")
            for _ in range(3):
                net(given)
        counts.append([sops.total(quantity) for quantity in QUANTITIES])
    assert counts[0] == counts[1]
    nested = torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged)
    with pytest.raises(TypeError, match="nested tensor"), SynapticOperations(net):
        net(nested)


def events(*shape):
    return torch.randint(0, 3, shape).float()


def reals(*shape):
    return torch.rand(shape) * (torch.rand(shape) < 0.5)


class Functional(nn.Module):
    """One product with a parameter."""

    def __init__(self, weight, product):
        super().__init__()
        self.weight, self.product = nn.Parameter(torch.rand(weight)), product

    def forward(self, x):
        return self.product(x, self.weight)


FUNCTIONAL = {
    "linear": ((4, 3), F.linear, (2, 3), 4),
    "linear_on_tokens": ((4, 3), F.linear, (2, 5, 3), 4),
    "matmul": ((3, 4), torch.matmul, (2, 3), 4),
    "operator": ((3, 4), lambda x, w: x @ w, (2, 5, 3), 4),
    "transposed": ((4, 3), lambda x, w: x @ w.t(), (2, 3), 4),
    "from_the_left": ((4, 3), lambda x, w: w @ x, (2, 3, 5), 4),
    "to_one": ((3,), torch.matmul, (2, 3), 1),
    "bmm": ((2, 3, 4), torch.bmm, (2, 5, 3), 4),
    "einsum": ((3, 4), lambda x, w: torch.einsum("bti,io->bto", x, w), (2, 5, 3), 4),
    "einsum_heads": ((3, 4, 2), lambda x, w: torch.einsum("bi,ihd->bhd", x, w), (2, 3), 8),
    "tensordot": ((3, 4), lambda x, w: torch.tensordot(x, w, 1), (2, 3), 4),
    "addmm": ((3, 4), lambda x, w: torch.addmm(torch.zeros(4), x, w), (2, 3), 4),
    "masked_weights": ((3, 4), lambda x, w: x @ (w * w.sign()).relu(), (2, 3), 4),
    "sum_of_elementwise": ((3, 4), lambda x, w: (x.unsqueeze(-1) * w).sum(1), (2, 3), 4),
    "two_of_the_same": ((3, 3), lambda x, w: x @ w + x @ w.t(), (2, 3), 6),
}


@every_context
@pytest.mark.parametrize("make", [events, reals])
@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional_products(name, make, context):
    torch.manual_seed(0)
    weight, product, shape, fan_out = FUNCTIONAL[name]
    model, x = Functional(weight, product), make(*shape)
    with SynapticOperations(model) as metric, context():
        for _ in range(3):
            model(x)
    assert counted(metric) == tuple(3 * cost for cost in with_weights(x, fan_out))
    assert metric.samples == 6


CONVOLUTIONS = {
    "conv1d": (F.conv1d, nn.Conv1d(2, 3, 3, padding=1, stride=2), (2, 7)),
    "conv2d": (F.conv2d, nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2), (4, 5, 6)),
    "conv3d": (F.conv3d, nn.Conv3d(1, 2, 2, padding=1), (1, 3, 3, 4)),
    "transposed1d": (F.conv_transpose1d, nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1), (2, 5)),
    "transposed2d": (F.conv_transpose2d, nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), (2, 3, 4)),
}


@every_context
@pytest.mark.parametrize("make", [events, reals])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_functional_convolutions(name, make, context):
    torch.manual_seed(0)
    function, layer, shape = CONVOLUTIONS[name]
    names = ("stride", "padding", "dilation", "groups", *(["output_padding"] if "transposed" in name else []))
    arguments = {each: getattr(layer, each) for each in names}
    model = Functional(layer.weight.shape, lambda x, w: function(x, w, **arguments))
    x = make(2, *shape)
    with SynapticOperations(model) as metric, context():
        model(x)
    assert counted(metric) == brute_force_operations(layer, x)


@every_context
def test_products_of_activities(context):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            self.layer(x)
            return torch.relu(x - 0.2) @ x.transpose(-2, -1)

    torch.manual_seed(0)
    model, x = Net(), reals(2, 4, 3)
    with SynapticOperations(model) as metric, context():
        model(x)
    assert counted(metric) == of_pairs(torch.relu(x - 0.2), x.transpose(-2, -1))
    assert counted(metric, "layer") == with_weights(x, 3)


@every_context
@pytest.mark.parametrize("masked", [None, "causal", "bool", "float"])
def test_scaled_dot_product_attention(masked, context):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=masked == "causal")

    torch.manual_seed(0)
    q, k, v = reals(2, 2, 5, 4), reals(2, 2, 5, 4), reals(2, 2, 5, 4)
    lower = torch.ones(5, 5, dtype=torch.bool).tril()
    mask = {"bool": lower, "float": torch.zeros(5, 5).masked_fill(~lower, -torch.inf)}.get(masked)
    weights = lower.float() if masked else torch.ones(5, 5)
    with SynapticOperations(Net()) as metric, context():
        metric.watch.model(q, k, v)
    assert counted(metric) == plus(of_pairs(q, k.transpose(-2, -1)), of_pairs(weights.expand(2, 2, 5, 5), v))


@every_context
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_multi_head_attention(batch_first, need_weights, training, context):
    torch.manual_seed(0)
    batch, length, heads, size = 3, 4, 2, 6
    model = nn.MultiheadAttention(size, heads, batch_first=batch_first).train(training)
    x = events(batch, length, size)
    given = x if batch_first else x.transpose(0, 1)
    with SynapticOperations(model, batch_dim=0 if batch_first else 1) as metric, context():
        model(given, given, given, need_weights=need_weights)
    assert metric.samples == batch
    # Projections of 0s are not 0, for the bias; so all of what follows is dense.
    tokens = batch * length
    projections = with_weights(x, 3 * size)
    inner = 2 * tokens * length * size + tokens * size * size
    expected = plus(projections, (0, inner, inner))
    with torch.no_grad():
        model.in_proj_bias.add_(0.3)
    with SynapticOperations(model, batch_dim=0 if batch_first else 1) as metric, context():
        model(given, given, given, need_weights=need_weights)
    assert plus(counted(metric), counted(metric, "out_proj")) == expected


@every_context
def test_a_layer_of_a_transformer(context):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0).eval()
    with torch.no_grad():
        model.self_attn.in_proj_bias.add_(0.3)
    x = torch.rand(3, 4, 6)
    with SynapticOperations(model) as metric, context():
        model(x)
    tokens = 3 * 4
    assert counted(metric, "self_attn")[2] == tokens * 6 * 18 + 2 * tokens * 4 * 6 + tokens * 36
    assert counted(metric, "linear1")[2] == counted(metric, "linear2")[2] == tokens * 48
    assert torch.backends.mha.get_fastpath_enabled()


RECURRENT_CELLS = {
    "lif": norse.LIFRecurrentCell,
    "lsnn": norse.LSNNRecurrentCell,
    "adex": norse.LIFAdExRecurrentCell,
    "ex": norse.LIFExRecurrentCell,
    "izhikevich": lambda *sizes: norse.IzhikevichRecurrentCell(*sizes, norse.functional.izhikevich.tonic_spiking),
    "refrac": norse.LIFRefracRecurrentCell,
}


@every_context
@pytest.mark.parametrize("name", RECURRENT_CELLS)
def test_recurrent_cells_of_norse(name, context):
    torch.manual_seed(0)
    make = RECURRENT_CELLS[name]
    cell = make(6, 5)
    with torch.no_grad():
        cell.input_weights.fill_(30.0)
    expected, state = (0, 0, 0), None
    with SynapticOperations(cell) as metric, context():
        for _ in range(4):
            x = events(2, 6)
            before = torch.zeros(2, 5) if state is None else _spikes(state).clone()
            _, state = cell(x, state)
            expected = plus(expected, with_weights(x, 5), with_weights(before, 5))
    assert counted(metric) == expected
    assert metric.samples == 2
    if name == "lif":
        assert before.any()
    per_step = [round(2 * each) for each in metric.by_step("dense_macs")]
    assert sum(per_step) == expected[2]


def _spikes(state):
    return state.lif.z if hasattr(state, "lif") else state.z


RECURRENT = {
    "all_to_all": dict(linear_features=5),
    "one_to_one": dict(all_to_all=False, V=0.5),
    "one_to_one_by_neuron": dict(all_to_all=False, V=torch.rand(5)),
}


@every_context
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("synaptic", [False, True], ids=["leaky", "synaptic"])
def test_recurrent_neurons_of_snntorch(synaptic, name, context):
    torch.manual_seed(0)
    if synaptic:
        neuron = snntorch.RSynaptic(alpha=0.8, beta=0.9, threshold=0.5, init_hidden=True, **RECURRENT[name])
    else:
        neuron = snntorch.RLeaky(beta=0.9, threshold=0.5, init_hidden=True, **RECURRENT[name])
    model = nn.Sequential(neuron)
    expected, spikes = (0, 0, 0), torch.zeros(2, 5)
    with SynapticOperations(model) as metric, context():
        for _ in range(4):
            before, spikes = spikes, model(torch.rand(2, 5))
            expected = plus(expected, with_weights(before, 5 if name == "all_to_all" else 1))
    assert before.any()
    assert counted(metric, "0.recurrent") == expected
    assert metric.samples == 2


@every_context
@pytest.mark.parametrize("make", [nn.RNN, nn.GRU, nn.LSTM])
def test_classic_recurrent_layers_are_counted_or_named(make, context):
    torch.manual_seed(0)
    model, x = make(4, 3, batch_first=True), events(2, 5, 4)
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[make] * 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with SynapticOperations(model) as metric, context():
            outputs, _ = model(x)
    if any("does not count all" in str(warning.message) for warning in caught):
        return
    before = torch.cat([torch.zeros(2, 1, 3), outputs[:, :-1]], 1)
    sops, _, dense = with_weights(x, gates)
    assert counted(metric)[0] == sops
    assert counted(metric)[1] == (before != 0).sum() * gates
    assert counted(metric)[2] == dense + before.numel() * gates


def test_what_is_not_counted_is_named_once():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(3, 3, 2)

        def forward(self, x):
            return self.bilinear(x, x)

    model = Pair()
    with SynapticOperations(model) as metric:
        with pytest.warns(UserWarning, match="SynapticOperations does not count all: 'bilinear' .*trilinear"):
            model(torch.rand(2, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(torch.rand(2, 3))
    assert metric.compute() == 0


def test_looking_things_up_and_scaling_them_is_no_product():
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with SynapticOperations(model) as metric:
            model(torch.tensor([1, 2, 6]))
    assert list(metric.by_layer()) == ["3"]


def test_a_network_without_products_is_not_looked_at_again_and_again():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    looked = []
    with SynapticOperations(model) as metric:
        counter, looks = metric.watch._counter, metric.watch._looks
        begin = counter.on_begin
        counter.on_begin = lambda *args: (begin(*args), looked.append(looks.products is not None))
        for _ in range(9):
            model(torch.rand(2, 3))
    assert looked == [True, True, False, True, False, False, False, True, False]


def test_two_metrics_count_the_same():
    model, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.rand(2, 3, 4)
    with SynapticOperations(model) as alone:
        model(x, x, x)
    with SynapticOperations(model) as one, Energy(model) as other:
        model(x, x, x)
    assert counted(one) == counted(other) == counted(alone)


def test_a_failed_pass_leaves_no_watch_behind():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(4, 3))
    with SynapticOperations(model):
        with pytest.raises(ValueError, match="input_shape"):
            model(torch.rand(2, 3))
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert torch.backends.mha.get_fastpath_enabled()


# Average pooling.


POOLS = {
    "1d": (nn.AvgPool1d(2), (3, 8), nn.Conv1d(3, 2, 3, padding=1)),
    "2d": (nn.AvgPool2d(3), (3, 7, 6), nn.Conv2d(3, 2, 2)),
    "2d_overlapping": (nn.AvgPool2d(3, stride=1, padding=1), (2, 5, 5), nn.Conv2d(2, 3, 3)),
    "3d": (nn.AvgPool3d((1, 2, 3)), (1, 2, 4, 6), nn.Conv3d(1, 2, 1)),
    "adaptive": (nn.AdaptiveAvgPool2d(2), (3, 6, 4), nn.Conv2d(3, 2, 2)),
    "global": (nn.AdaptiveAvgPool2d(1), (3, 3, 5), nn.Conv2d(3, 2, 1)),
}


class Pooled(nn.Module):
    def __init__(self, pool, layer, flat):
        super().__init__()
        self.pool, self.layer, self.flat = pool, layer, flat

    def forward(self, x):
        x = self.pool(x)
        return self.layer(x.flatten(1) if self.flat else x)


@every_context
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("functional", [False, True], ids=["module", "functional"])
@pytest.mark.parametrize("name", POOLS)
def test_events_are_counted_before_average_pooling(name, functional, flat, context):
    torch.manual_seed(0)
    pool, shape, layer = POOLS[name]
    x = events(2, *shape)
    size = {"1d": 2, "2d": 9, "2d_overlapping": 9, "3d": 6, "adaptive": 6, "global": 15}[name]
    pooled = (pool(x) * size).round()
    layer = nn.Linear(pooled[0].numel(), 3) if flat else layer
    if functional:
        function = lambda x, pool=pool: pool.forward(x)  # noqa: E731
        model = Pooled(function, layer, flat)
    else:
        model = Pooled(pool, layer, flat)
    with SynapticOperations(model) as metric, context():
        for _ in range(3):
            model(x)
    expected = brute_force_operations(layer, pooled.flatten(1) if flat else pooled)
    assert expected[0] > 0
    assert counted(metric, "layer") == tuple(3 * cost for cost in expected)


def test_real_input_stays_real_behind_average_pooling():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    with SynapticOperations(model) as metric:
        model(torch.rand(2, 1, 4, 4))
    assert counted(metric, "2") == (0, 2 * 4 * 3, 2 * 4 * 3)


@pytest.mark.parametrize(
    "pool",
    [nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(3)],
)
def test_windows_of_several_sizes_are_named(pool):
    model = nn.Sequential(pool, nn.Conv2d(1, 2, 1))
    with SynapticOperations(model), pytest.warns(UserWarning, match="does not count all: '0' .*windows"):
        model(torch.ones(1, 1, 5, 5))


def test_a_layer_behind_an_average_that_cannot_be_followed_is_named():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Hardtanh(), nn.Conv2d(1, 2, 1))
    with SynapticOperations(model), pytest.warns(UserWarning, match="does not count all: '2' .*multiples of events"):
        model(torch.eye(4).expand(1, 1, 4, 4))


def test_averages_of_averages():
    model = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(1, 4))
    x = events(2, 1, 6, 6)
    with SynapticOperations(model) as metric:
        model(x)
    assert counted(metric, "3") == (int(x.sum()) * 4, 0, 2 * 4)


def test_attention_with_fewer_keys_than_queries():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, q, k):
            return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    q, k = torch.rand(2, 4, 3, 8) + 0.1, torch.rand(2, 2, 3, 8) + 0.1
    with SynapticOperations(Net()) as metric:
        metric.watch.model(q, k)
    assert counted(metric) == (0, 2 * 2 * 4 * 3 * 3 * 8, 2 * 2 * 4 * 3 * 3 * 8)


def test_a_model_without_weights():
    with pytest.raises(ValueError, match="`model`.*ReLU has none"):
        SynapticOperations(nn.Sequential(nn.ReLU())[0])


@pytest.mark.parametrize("compiled_first", [False, True])
def test_compiled_products_are_counted(compiled_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.weight = nn.Linear(3, 3), nn.Parameter(torch.rand(3, 4))

        def forward(self, x):
            return self.layer(x) @ self.weight

    model, x = Net(), torch.rand(2, 3)
    compiled = torch.compile(model, backend="eager")
    if compiled_first:
        compiled(x)
        torch._dynamo.reset()
    with SynapticOperations(model) as metric:
        for _ in range(3):
            compiled(x)
    assert counted(metric)[2] == 3 * 2 * 12
    assert counted(metric, "layer")[2] == 3 * 2 * 9
    torch._dynamo.reset()


def test_one_graph_cannot_be_watched():
    model = nn.Linear(2, 2)
    torch._dynamo.reset()
    with (
        SynapticOperations(model),
        pytest.raises(torch._dynamo.exc.Unsupported, match="cannot be compiled with\\s+full"),
    ):
        torch.compile(model, fullgraph=True, backend="eager")(torch.rand(1, 2))
    torch._dynamo.reset()


def test_products_that_only_later_passes_make():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.weight, self.passes = nn.Linear(3, 3), nn.Parameter(torch.rand(3, 4)), 0

        def forward(self, x):
            self.passes += 1
            return self.layer(x) @ self.weight if self.passes > 2 else self.layer(x)

    model = Net()
    with SynapticOperations(model) as metric:
        for _ in range(3):
            model(torch.rand(2, 3))
        with pytest.warns(UserWarning, match="does not count all: 'Net' .*earlier passes"):
            model(torch.rand(2, 3))
        model(torch.rand(2, 3))
    assert counted(metric)[2] == 2 * 2 * 12


REPARAMETRIZATIONS = [
    nn.utils.parametrizations.weight_norm,
    nn.utils.parametrizations.spectral_norm,
    nn.utils.parametrizations.orthogonal,
    nn.utils.spectral_norm,
]


@pytest.mark.parametrize("make", REPARAMETRIZATIONS)
def test_making_weights_costs_nothing(make):
    model = make(nn.Linear(3, 3))
    with SynapticOperations(nn.Sequential(model)) as metric:
        for _ in range(3):
            metric.watch.model(torch.rand(2, 3))
    assert metric.by_layer("dense_macs") == {"0": 9}
    assert not metric.watch._looks.always


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_products_are_not_counted_again(use_reentrant):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.weight = nn.Linear(3, 3), nn.Parameter(torch.rand(3, 4))

        def inner(self, x):
            return self.layer(x) @ self.weight

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=use_reentrant)

    model = Net()
    with SynapticOperations(model) as metric:
        for _ in range(3):
            model(torch.rand(2, 3, requires_grad=True)).sum().backward()
    assert metric.by_layer("dense_macs") == {"layer": 9, "": 12}


def test_layers_that_do_more_than_their_class():
    class LowRank(nn.Linear):
        def __init__(self):
            super().__init__(6, 5)
            self.down, self.up = nn.Parameter(torch.rand(2, 6)), nn.Parameter(torch.rand(5, 2))

        def forward(self, x):
            return super().forward(x) + x @ self.down.t() @ self.up.t()

    for model in (nn.Sequential(LowRank()), LowRank()):
        with SynapticOperations(model) as metric:
            model(torch.rand(2, 6))
        assert list(metric.by_layer("dense_macs").values()) == [30 + 12 + 10]
        assert metric.by_step("dense_macs") == [30 + 12 + 10]
        assert metric.samples == 2


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = nn.Embedding(10, 4), nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(self.layer(self.embedding(x)), self.embedding.weight)

    with SynapticOperations(Tied()) as metric:
        metric.watch.model(torch.tensor([1, 2]))
    assert metric.by_layer("dense_macs") == {"layer": 16, "": 40}


def test_an_interrupted_pass_is_forgotten_at_reset():
    class Interrupted(nn.Module):
        def forward(self, x):
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(3, 3), Interrupted())
    with SynapticOperations(model) as metric:
        with pytest.raises(KeyboardInterrupt):
            model(torch.rand(2, 3))
        metric.reset()
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
