"""The command line and every recipe, run for a moment."""

from __future__ import annotations

import json
import shlex
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything

from snnreg_plugins import cli, to_norse, to_snntorch
from snnreg_plugins._weights import load_weights, read_weights
from snnreg_plugins.cli.commands import ExportTrainer
from snnreg_plugins.data import CIFAR10, MNIST, Digits, FashionMNIST, JapaneseVowels
from snnreg_plugins.export.files import load_network
from snnreg_plugins.modules import Classifier, LeNet

RECIPES = Path(__file__).parents[1] / "recipes"
MOMENT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.accelerator=cpu",
]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["snnreg", *map(str, words)])
        cli.main()

    return run


@pytest.fixture
def stand_ins(monkeypatch):
    """Random data of the shapes of the sets that have to be downloaded, or come with a package of their own."""

    def images(shape):
        def load(self, train):
            generator = torch.Generator().manual_seed(int(train))
            x = torch.randint(0, 256, (5600 if train else 300, *shape), generator=generator, dtype=torch.uint8)
            return x, torch.randint(0, 10, (len(x),), generator=generator)

        return load

    for data, shape in ((MNIST, (1, 28, 28)), (CIFAR10, (3, 32, 32))):
        monkeypatch.setattr(data, "_load", images(shape))
        monkeypatch.setattr(data, "prepare_data", lambda self: None)

    def series(self, train):
        x = torch.randn(90, 20, 12, generator=torch.Generator().manual_seed(int(train)))
        x[::2, 9:] = torch.nan
        return x, torch.arange(90) % 9

    monkeypatch.setattr(JapaneseVowels, "_load", series)


def recipes():
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def commands_of(name):
    """The commands in the header of a recipe, without the program."""
    lines = [line.removeprefix("#").strip() for line in (RECIPES / f"{name}.yaml").read_text().splitlines()]
    return [shlex.split(line.removeprefix("snnreg ")) for line in lines if line.startswith("snnreg ")]


def test_there_are_all_recipes():
    assert recipes() == [
        "cifar10_vgg_expected_rate",
        "digit_rows_recurrent",
        "digits_lenet_expected_rate",
        "digits_lenet_finetune",
        "digits_lenet_none",
        "digits_lenet_one_step",
        "digits_lenet_tandem",
        "fashion_mnist_lenet_expected_rate",
        "fashion_mnist_lenet_hoyer_square",
        "fashion_mnist_lenet_l1",
        "fashion_mnist_lenet_none",
        "fashion_mnist_lenet_qcfs",
        "fashion_mnist_vgg_none",
        "japanese_vowels_recurrent",
        "optical_equalizer",
    ]


# Others differ from these in the penalty, and in size.
QUICK = ("digits_lenet_expected_rate", "digits_lenet_finetune")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in recipes()]
)
def test_every_recipe_runs(name, command, stand_ins, capsys):
    if name in ("digits_lenet_finetune", "digits_lenet_one_step", "digits_lenet_tandem"):
        command("fit", "--config", "recipes/digits_lenet_expected_rate.yaml", *MOMENT)
    command(*commands_of(name)[1], *MOMENT)
    folder = Path("runs") / name
    written = {"report.json", "report.png", "report.html", "report.yaml"}
    own = name.endswith(("_equalizer", "_recurrent"))  # a network that is measured as it is
    assert written | (set() if own else {"spiking.pt", "raster.json"}) <= {path.name for path in folder.iterdir()}
    figures = json.loads((folder / "report.json").read_text())
    assert figures["steps"][-1]["sops"] > 0
    assert ("SNN by layer" if own else "SNN, T = 4") in capsys.readouterr().out


def printed(command, capsys, *words):
    """The settings that a command would run with."""
    with pytest.raises(SystemExit) as stop:
        command(*words, "--print_config=skip_unset")
    assert not stop.value.code
    return yaml.safe_load(capsys.readouterr().out)


def value_of(settings, option):
    """What the settings hold for an option."""
    keys = option.removeprefix("--").split(".")
    if keys[0] == "callback":
        (settings,) = [one for one in settings["trainer"]["callbacks"] if one["class_path"].endswith(f".{keys[1]}")]
        keys = ["init_args", *keys[2:]]
    for key in keys:
        settings = settings[key]
    return settings


def test_the_default_data_leaves_others_their_own_arguments(command, capsys):
    recipe = ["fit", "--config", "recipes/fashion_mnist_lenet_none.yaml"]
    assert printed(command, capsys, *recipe)["data"]["init_args"]["validation_size"] == 5000
    plain = ["fit", "--model", "Classifier", "--model.network", "LeNet", "--data.batch_size", "32"]
    assert printed(command, capsys, *plain)["data"]["class_path"] == "snnreg_plugins.data.Digits"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in recipes()]
)
def test_every_header_gives_a_launch_command_and_an_override_that_acts(name, command, capsys):
    plain, changed = commands_of(name)
    before, after = printed(command, capsys, *plain), printed(command, capsys, *changed)
    override = dict(zip(changed[3::2], changed[4::2], strict=True))
    assert any(option.startswith("--callback.") for option in override)
    for option, value in override.items():
        assert value_of(after, option) == yaml.safe_load(value) != value_of(before, option)
    rest = [len(settings["trainer"].pop("callbacks")) for settings in (before, after)]
    assert rest[0] == rest[1]


@pytest.mark.slow
def test_fit_test_predict_validate_and_export_of_one_recipe(command, capsys):
    config = ["--config", "recipes/digits_lenet_expected_rate.yaml"]
    command("fit", *config, *MOMENT)
    checkpoint = "runs/digits_lenet_expected_rate/dnn.ckpt"
    for subcommand in ("validate", "test", "predict"):
        command(subcommand, *config, "--ckpt_path", checkpoint)
    assert "snn/accuracy" in capsys.readouterr().out  # SpikingValidation runs in validation alone too
    options = ["--timesteps=3", "--per_channel=true", "--diagnose=true"]
    command("export", *config, "--ckpt_path", checkpoint, *options, "--output_dir=out")
    out = capsys.readouterr().out
    assert "SNN, T = 3" in out
    assert "Neurons at T = 3" in out
    for words in (["out", "--output=page.html"], ["runs/digits_lenet_expected_rate"]):
        command("report", *words)
    assert Path("page.png").is_file()
    assert "seed_everything" in Path("runs/digits_lenet_expected_rate/report.html").read_text()
    assert "What each layer loses" in Path("page.html").read_text()
    assert "Written: page.html, page.png" in capsys.readouterr().out
    assert {"diagnosis.json", "diagnosis.png"} < {path.name for path in Path("out").iterdir()}
    network = load_network("out/spiking.pt", Classifier(LeNet((1, 16, 16))))
    assert network.timesteps == 3
    assert network(torch.rand(2, 1, 16, 16)).shape == (2, 10)
    command("export", *config, "--ckpt_path", checkpoint, "--timesteps=2", "--threshold=auto", "--output_dir=auto")
    out = capsys.readouterr().out
    chosen = load_network("auto/spiking.pt", Classifier(LeNet((1, 16, 16)))).conversion
    assert f"threshold='auto' chose threshold={chosen['threshold']!r}, percent={chosen['percent']}" in out


@pytest.mark.slow
def test_a_checkpoint_with_quantized_activations_exports(command, stand_ins, capsys):
    config = ["--config", "recipes/fashion_mnist_lenet_qcfs.yaml"]
    command("fit", *config, *MOMENT)
    command("test", *config, "--ckpt_path", "runs/fashion_mnist_lenet_qcfs/dnn.ckpt")
    command("export", *config, "--ckpt_path", "runs/fashion_mnist_lenet_qcfs/dnn.ckpt", "--timesteps=3")
    assert "SNN, T = 3" in capsys.readouterr().out


def test_a_second_run_replaces_the_first(command):
    for _ in range(2):
        command("fit", "--config", "recipes/digits_lenet_expected_rate.yaml", *MOMENT)
    assert [path.name for path in Path("runs/digits_lenet_expected_rate").glob("*.ckpt")] == ["dnn.ckpt"]


def test_digits_are_the_default_data(command, capsys):
    with pytest.raises(SystemExit):
        command("fit", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out.split("\n", 1)[1])
    assert printed["data"]["class_path"] == "snnreg_plugins.data.Digits"


def refused(command, *words):
    """What a command that is refused says, in a line, and how it ends."""
    with pytest.raises(SystemExit) as stop:
        command(*words)
    return stop.value.code


FINETUNE = ["fit", "--config", "recipes/digits_lenet_finetune.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.init_args.checkpoint=nowhere.ckpt"], "there is no 'nowhere.ckpt'"),
        (["--model.init_args.timesteps=0"], "`timesteps`"),
        (["--callback.ActivityRegularization.strength=-1"], "`strength` to be finite and at least 0, but got -1"),
        (["--callback.Activity.strength", "2"], "but the callbacks are ActivityRegularization, ExportReport"),
        (["--callback.ActivityRegularization", "2"], "name a callback of the recipe and one of its arguments"),
        (["--callback.ExportReport.html", "--trainer.max_epochs=1"], "`--callback.ExportReport.html` to have a value"),
        (["--callback.ExportReport.2.timesteps=1"], "to say 1 to 1 of ExportReport, but got 2"),
        (["--trainer.callbacks+=ExportReport", "--callback.ExportReport.timesteps=1"], "as there are 2"),
        (["--trainer.default_root_dir=${HOME}/runs"], "`trainer.default_root_dir` to be a value, but got '${HOME}"),
        (["--callback.ExportReport.output_dir=${HOME}/runs"], "`trainer.callbacks[1].init_args.output_dir`"),
        (["--trainer.max_epochs=-3"], "`max_epochs` must be"),
        (["--trainer.logger.init_args.save_dir=words.yaml"], "words.yaml"),
        (["--config", "--trainer.max_epochs=1"], "nothing stands behind --config. Give one, as in --config recipes/d"),
        (["--config="], "nothing stands behind --config. Give one, as in --config recipes/digits_lenet_expected_rate"),
        (["--config=nowhere.yaml"], "`config` to name a file, but there is no 'nowhere.yaml'"),
        (["--config=recipes/digits_lenet_finetun.yaml"], "Did you mean `recipes/digits_lenet_finetune.yaml`?"),
        (["--config=words.yaml"], "`config` to name a recipe, but 'words.yaml' holds no names and values"),
        (["--config=empty.yaml"], "`config` to name a recipe, but 'empty.yaml' holds no names and values"),
        (["--config=brackets.yaml"], "'brackets.yaml' cannot be read"),
        (["--config=large.yaml"], "'large.yaml' cannot be read"),
    ],
)
def test_a_refusal_is_one_line(words, message, command):
    files = {"words": "just words", "empty": "", "brackets": "[" * 3000, "large": f"a: [{'1, ' * 100_000}]"}
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)
    code = refused(command, *FINETUNE, *words)
    assert code.startswith("error: ")
    assert message in code
    assert "\n" not in code
    assert not list(Path().glob("$*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epochs=2.5"], "Expected `trainer.max_epochs` to be an integer, but got 2.5."),
        (["--trainer.max_epochs=two"], "Expected `trainer.max_epochs` to be an integer, but got two."),
        (["--callback.ExportReport.timesteps=two"], "Expected `timesteps` to be an integer, but got two."),
        (
            ["--callback.ExportReport.timesteps='2'"],
            "Expected `timesteps` to be an integer, but got '2', in quotes, which make it a text; leave them out.",
        ),
        (["--callback.ActivityRegularization.percent='1e-3'"], "to be a number, but got 1e-3, in quotes, "),
        (["--callback.ExportReport.html='false'"], "to be true or false, but got false, in quotes, "),
        (
            ["--callback.ExportReport.timestep=2"],
            "ExportReport takes no argument `timestep`. Did you mean `timesteps`?",
        ),
        (["--callback.ActivityRegularization.penalty=l7"], "Expected `penalty` to be one of l1, l2, "),
        (["--model=my.Net"], "There is no class 'my.Net' for `model`: No module named 'my', here or among"),
        (["--model.init_args.hiden=3"], "SpikingClassifier takes no argument `hiden`. It takes network, "),
        (["--config"], "a value behind `--config`, but there is none. Give one, as in --config recipes/digits_lenet_"),
        (["--ckpt_path"], "a value behind `--ckpt_path`, but there is none. Give one, as in --ckpt_path runs/digits_l"),
        (["--data"], "a value behind `--data`, but there is none. Give one, as in --data VALUE."),
        (["--trainer.max_epoch_=3"], "no option `--trainer.max_epoch_`. Did you mean `--trainer.max_epochs`?"),
        (["--trainer.max_epochs=3", "more"], "There is one word too many: 'more'. A value stands behind its option"),
        (["--model=Clasifier"], "There is no class 'Clasifier' for `model`. Did you mean `Classifier`?"),
        (["--data=Images"], "There is no class 'Images' for `data`. Write its module too, as in my_module.Net."),
    ],
)
def test_what_the_parser_refuses_is_one_line(words, message, command, capsys):
    assert refused(command, *FINETUNE, *words) == 2
    said, help_ = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert message in said
    assert "NoneType" not in said
    assert "lightning.Callback" not in said
    assert help_ == "All options: snnreg fit --help"
    assert ("quotes" in said) == ("='" in words[0])


def test_one_of_several_callbacks_of_a_class_is_overridden_by_its_number(command, capsys):
    more = ["--trainer.callbacks+=ActivityRegularization", "--callback.ActivityRegularization.2.strength", "1e-3"]
    settings = printed(command, capsys, *FINETUNE, *more, "--callback.ExportReport.steps=[1,3]")
    first, report, last = settings["trainer"]["callbacks"]
    assert (first["init_args"]["strength"], last["init_args"]["strength"]) == (1.0, 1e-3)
    assert report["init_args"]["steps"] == [1, 3]


def test_what_is_wrong_in_a_recipe_is_one_line(command, capsys):
    recipe = (RECIPES / "digits_lenet_finetune.yaml").read_text()
    for before, after, message in (
        (
            "class_path: ActivityRegularization",
            "class_path: ActivityRegularisation",
            "no class 'ActivityRegularisation' for `trainer.callbacks`. Did you mean `ActivityRegularization`?",
        ),
        (
            "penalty: l1",
            "penalti: l1",
            "ActivityRegularization takes no argument `penalti`. Did you mean `penalty`?",
        ),
        ("max_epochs: 10", "max_epoch: 10", "`fit` takes no `trainer.max_epoch`. Did you mean `trainer.max_epochs`?"),
    ):
        Path("mine.yaml").write_text(recipe.replace(before, after))
        assert refused(command, "fit", "--config=mine.yaml") == 2
        said, _ = capsys.readouterr().err.splitlines()
        assert message in said
    Path("mine.yaml").write_text(recipe.replace("timesteps: 2", 'timesteps: "2"'))
    assert printed(command, capsys, "fit", "--config=mine.yaml")["model"]["init_args"]["timesteps"] == 2


def test_a_second_recipe_replaces_the_list_or_adds_to_it(command, capsys):
    for key, expected in (("callbacks", 1), ("callbacks+", 3)):
        Path("more.yaml").write_text(yaml.safe_dump({"trainer": {key: [{"class_path": "SpikingValidation"}]}}))
        settings = printed(command, capsys, *FINETUNE, "--config", "more.yaml")
        assert len(settings["trainer"]["callbacks"]) == expected
    settings = printed(command, capsys, *FINETUNE, "--config", '{"trainer": {"max_epochs": 7}}')
    assert settings["trainer"]["max_epochs"] == 7


def test_an_interruption_is_no_traceback(command, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("snnreg_plugins.cli.commands.CLI.parse_arguments", interrupted)
    assert refused(command, "fit") == 130
    assert capsys.readouterr().err == "Interrupted\n"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no report.json in 'run'"), ("{}", "hold a Report, but Report lacks samples")]
)
def test_a_report_that_is_none_is_refused_in_one_line(content, message, command):
    if content is not None:
        Path("run").mkdir()
        Path("run/report.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        command("report", "run")
    assert message in str(stop.value.code)
    assert not list(Path("run").glob("*.html"))


def test_report_without_matplotlib_writes_the_page(command, monkeypatch, capsys):
    command("fit", "--config", "recipes/digits_lenet_expected_rate.yaml", *MOMENT)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command("report", "runs/digits_lenet_expected_rate", "--output", "page.html")
    assert 'No picture: save_plot needs matplotlib: pip install "snnreg_plugins[plot]"' in capsys.readouterr().out
    assert [path.name for path in Path().glob("page.*")] == ["page.html"]


def test_of_several_processes_the_first_alone_exports(monkeypatch):
    monkeypatch.setattr(ExportTrainer, "is_global_zero", False)
    trainer = ExportTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.export(None, None, "no checkpoint")  # or it would miss it


def test_checkpoints_that_hold_code_are_not_run(command, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.ckpt")
    config = ["--config", "recipes/digits_lenet_expected_rate.yaml"]
    with pytest.raises(SystemExit) as stop:
        command("export", *config, "--ckpt_path=hostile.ckpt")
    assert "not safe" in str(stop.value.code)
    with pytest.raises(ValueError, match=r"hostile\.ckpt"):
        load_network("hostile.ckpt", LeNet())
    assert not (tmp_path / "owned").exists()


DAMAGED = {
    "half of it": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "nothing": lambda path, whole: path.write_bytes(b""),
    "text": lambda path, whole: path.write_text("hello\n"),
    "a list": lambda path, whole: torch.save([1, 2], path),
    "no weights": lambda path, whole: torch.save({"epoch": 3}, path),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("subcommand", ["fit", "test", "export"])
def test_a_damaged_checkpoint_is_refused_in_one_sentence(damage, subcommand, command, tmp_path):
    file = tmp_path / "net.ckpt"
    torch.save({"state_dict": {"weight": torch.ones(1000)}}, file)
    DAMAGED[damage](file, file.read_bytes())
    with pytest.raises(SystemExit) as stop:
        command(subcommand, "--config", "recipes/digits_lenet_expected_rate.yaml", "--ckpt_path", file)
    assert "error: Expected argument `ckpt_path` to name a " in str(stop.value.code)
    assert "net.ckpt' " in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


MODULE = """
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F


class Net(LightningModule):
    def __init__(self, hidden: int = 16, lr: float = 1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        self.test_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("loss", F.cross_entropy(self(x), y))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
"""
RECIPE = """
seed_everything: 0
model:
  class_path: users_module.Net
  init_args:
    hidden: 12
data:
  class_path: Digits
  init_args:
    size: 8
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  limit_test_batches: 1
  logger: false
  enable_progress_bar: false
  callbacks:
    - class_path: ActivityRegularization
      init_args:
        strength: 1.0
    - class_path: ModelCheckpoint
      init_args:
        dirpath: runs/mine
        filename: dnn
        enable_version_counter: false
    - class_path: ExportReport
      init_args:
        output_dir: runs/mine
        timesteps: 2
        html: false
"""
FINETUNING = """
model:
  class_path: SpikingClassifier
  init_args:
    network:
      class_path: users_module.Net
      init_args:
        hidden: 12
    checkpoint: runs/mine/dnn.ckpt
    timesteps: 2
trainer:
  callbacks:
    - class_path: ActivityRegularization
      init_args:
        strength: 1.0
    - class_path: ModelCheckpoint
      init_args:
        dirpath: runs/tuned
        filename: snn
        enable_version_counter: false
    - class_path: ExportReport
      init_args:
        output_dir: runs/tuned
        steps: [1, 2]
        html: false
"""


@pytest.fixture
def project(command, monkeypatch, tmp_path):
    """A user's folder: a module, a recipe that trains it, and one that goes on from there."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in (("users_module.py", MODULE), ("recipe.yaml", RECIPE), ("finetune.yaml", FINETUNING)):
        (tmp_path / name).write_text(text)
    yield command
    for name in ("users_module", "spiking_module"):
        sys.modules.pop(name, None)


MINE = ["--config", "recipe.yaml"]
TUNED = [*MINE, "--config", "finetune.yaml", "--callback.ExportReport.timesteps=null"]


@pytest.mark.slow
def test_a_users_module_is_trained_exported_and_fine_tuned(project, capsys):
    watching = ["--trainer.callbacks+=SpikingValidation", "--callback.SpikingValidation.until=net.2"]
    project("fit", *MINE, "--callback.ExportReport.until=net.2", *watching)
    assert load_network("runs/mine/spiking.pt", users_net()).conversion["until"] == "net.2"
    for subcommand in ("test", "predict"):
        project(subcommand, *MINE, "--ckpt_path=runs/mine/dnn.ckpt")
    project("export", *MINE, "--ckpt_path=runs/mine/dnn.ckpt", "--output_dir=part", "--until=net.2", "--html=false")
    assert load_network("part/spiking.pt", users_net()).conversion["until"] == "net.2"

    project("fit", *TUNED, "--model.init_args.until=net.2")
    assert load_network("runs/tuned/spiking.pt", users_net()).conversion["until"] == "net.2"
    project("fit", *TUNED)
    tuned = load_network("runs/tuned/spiking.pt", users_net())
    assert tuned.timesteps == 2
    x = torch.rand(5, 1, 8, 8)
    for subcommand in ("test", "predict"):
        project(subcommand, *TUNED, "--ckpt_path=runs/tuned/snn.ckpt")
    project("export", *TUNED, "--ckpt_path=runs/tuned/snn.ckpt", "--output_dir=again")
    assert torch.equal(load_network("again/spiking.pt", users_net())(x), tuned(x))
    project("export", *TUNED, "--ckpt_path=runs/tuned/snn.ckpt", "--output_dir=longer", "--timesteps=5", "--html=false")
    tuned.timesteps = 5
    assert torch.equal(load_network("longer/spiking.pt", users_net())(x), tuned(x))
    project("report", "again", "--output=page.html")
    assert Path("page.html").is_file()

    code = refused(project, "export", *TUNED, "--ckpt_path=runs/tuned/snn.ckpt", "--threshold=max")
    assert "`threshold` not to be given where the network of the checkpoint spikes already" in code
    code = refused(project, "export", *TUNED, "--ckpt_path=runs/mine/dnn.ckpt")
    assert "of the recipe's model, snnreg_plugins.modules.SpikingClassifier, but" in code
    code = refused(project, "test", *MINE, "--ckpt_path=runs/tuned/snn.ckpt")
    assert "does not fit the model of the recipe" in code
    assert "\n" not in code


def users_net(**settings):
    from users_module import Net

    return Net(**{"hidden": 12, **settings})


OWN_SPIKING = """
from snntorch import Leaky

import users_module


class Spiking(users_module.Net):
    def __init__(self, hidden: int = 16, lr: float = 1e-3):
        super().__init__(hidden, lr)
        self.leaky = Leaky(0.9)

    def forward(self, x):
        state = self.leaky.init_leaky()
        total = 0
        for _ in range(3):
            spikes, state = self.leaky(self.net[:2](x), state)
            total = total + self.net[3](spikes)
        return total / 3
"""


@pytest.mark.slow
def test_a_users_network_that_spikes_is_measured_with_its_own_steps(project):
    Path("spiking_module.py").write_text(OWN_SPIKING)
    own = [*MINE, "--model", "spiking_module.Spiking"]
    assert "`timesteps` of ExportReport not to be given for Spiking" in refused(project, "fit", *own)
    own.append("--callback.ExportReport.timesteps=null")
    project("fit", *own, "--trainer.callbacks+=SpikingValidation")
    project("export", *own, "--ckpt_path=runs/mine/dnn.ckpt", "--output_dir=own")
    figures = json.loads(Path("own/report.json").read_text())
    assert [step["timesteps"] for step in figures["steps"]] == [3]
    for option in ("threshold=max", "timesteps=5"):
        said = refused(project, "export", *own, "--ckpt_path=runs/mine/dnn.ckpt", f"--{option}")
        assert f"`{option.partition('=')[0]}` not to be given where the network of the checkpoint spikes" in said


@pytest.mark.slow
def test_settings_of_a_run_replace_those_of_a_run_and_no_file_of_the_users(project):
    """Without a logger they are written to the current folder."""
    fit = ["fit", "--trainer.max_steps=1", "--callback.ExportReport.steps=[1]"]
    for _ in range(2):
        project(*fit, *MINE)
    assert "max_steps: 1" in Path("config.yaml").read_text()
    Path("config.yaml").write_text(RECIPE)
    said = refused(project, *fit, "--config=config.yaml")
    assert "'config.yaml', which no run wrote. Name that file otherwise, or" in said.replace(f"{Path.cwd()}/", "")
    assert Path("config.yaml").read_text() == RECIPE
    project(*fit, "--config=config.yaml", "--trainer.default_root_dir=runs")
    assert Path("config.yaml").read_text() == RECIPE


@pytest.mark.slow
def test_hyper_parameters_of_a_module_trained_in_python_are_taken(project, capsys):
    sys.path.insert(0, ".")
    trainer = Trainer(max_epochs=1, limit_train_batches=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    module = users_net(hidden=13)
    module.save_hyperparameters({"note": "no argument of the module"})
    trainer.fit(module, datamodule=Digits(size=8))
    trainer.save_checkpoint("python.ckpt")
    with pytest.warns(UserWarning, match=r"The model has hidden=13 of the checkpoint 'python\.ckpt', not of recipe or"):
        project("export", *MINE, "--ckpt_path=python.ckpt")
    assert load_network("exported/spiking.pt", users_net(hidden=13))(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_weights_alone_are_exported_and_nothing_else(project):
    sys.path.insert(0, ".")
    torch.save(users_net().state_dict(), "weights.pt")
    torch.save({"state_dict": users_net().net.state_dict()}, "net.ckpt")
    for name in ("weights.pt", "net.ckpt"):
        project("export", *MINE, f"--ckpt_path={name}", "--html=false")
        assert "`ckpt_path` to name a checkpoint that Lightning wrote" in refused(
            project, "test", *MINE, f"--ckpt_path={name}"
        )
    assert "there is no 'nowhere.ckpt'" in refused(project, "test", *MINE, "--ckpt_path=nowhere.ckpt")
    assert 'ckpt_path="best"' in refused(project, "test", *MINE, "--ckpt_path=best")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_lenet_expected_rate", "fashion_mnist_lenet_l1"])
def test_what_a_recipe_trains_is_the_same_in_both_frameworks(name, command, stand_ins):
    command(*commands_of(name)[0], *MOMENT)
    folder = Path("runs") / name
    digits = name.startswith("digits")
    model = Classifier(LeNet((1, 16, 16) if digits else (1, 28, 28)))
    written = load_network(folder / "spiking.pt", model)
    load_weights(model, read_weights(folder / "dnn.ckpt", "checkpoint")[1], "dnn.ckpt")
    data = Digits(size=16, batch_size=64) if digits else FashionMNIST(batch_size=128)
    options = {"timesteps": written.timesteps, "per_channel": written.conversion["per_channel"]}
    seed_everything(0)
    x = [batch[0] for batch in islice(data.train_dataloader(), 20)]
    exported = [export(model, x, **options) for export in (to_snntorch, to_norse)]
    with torch.no_grad():
        first, second = (network(x[0], per_step=True) for network in exported)
        assert torch.equal(first, second)
        difference = (first[-1] - written(x[0])).abs().mean() / written(x[0]).std()
    assert difference < 0.1  # it was balanced on other batches
