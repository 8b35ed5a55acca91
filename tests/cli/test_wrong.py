"""What a person may get wrong on a command line: each is answered with the argument, the value, and what to do.

One rule for all: an exit code of 1 or 2, no traceback, few lines, and the words that each row names.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 (its log holds on to the output that is there when it is imported)
import pytest

from snnreg_plugins import cli

NETS = """
from torch import nn
Net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
value = 3
"""
FILES = {
    "nets.py": NETS,
    "words.yaml": "just words",
    "empty.yaml": "",
    "tabs.yaml": "trainer:\n\tmax_epochs: 3\n",
    "list.yaml": "- a\n- b\n",
    "text.csv": "a,b\n1,2\n",
    "text.pt": "no tensor",
    "older.yaml": "trainer:\n  callbacks:\n  - class_path: snnreg_plugins.callbacks.ActivityRegularizer\n",
    "other.yaml": "model:\n  class_path: SpikingClassifier\n  init_args:\n    timestep: 3\n",
    "ein Ordner/Zahlen \u00fc.csv": "a,b\n",
    "run/report.json": "{}",
    "broken/report.json": "{",
}
_HERE = "profile nets:Net --input-shape 4"
_SWEEP = "sweep --config recipes/sweeps/digits_lenet.yaml"
# What is typed, and what the answer names.
QUICK = [
    ("fitt", "'fitt'", "Did you mean `fit`?"),
    ("help", "'help'", "There are fit, "),
    ("--verison", "`--verison`", "Did you mean `--version`?"),
    ("profile", "`factory`", "snnreg profile --help"),
    ("profile nets", "`factory`", "'nets'", "such as networks:make_net"),
    ("profile nets:", "`factory`", "'nets:'"),
    ("profile nets:Nt --input-shape 4", "`factory`", "'Nt'"),
    ("profile nts:Net --input-shape 4", "`factory`", "'nts'", "in the current folder"),
    ("profile nets:value --input-shape 4", "`factory`", "int"),
    ("profile nets:Net", "`input_shape`", "such as 1 28 28"),
    ("profile nets:Net --input-shape", "`--input-shape`", "Give one"),
    ("profile nets:Net --input-shape 4 x", "`input_shape`", "x"),
    ("profile nets:Net --input-shape 0", "`input_shape`", "[0]"),
    ("profile nets:Net --input-shape=-4", "`input_shape`", "[-4]"),
    ("profile nets:Net --input-shape 5", "(8, 5)", "4 input features"),
    (f"{_HERE} --batch 0", "`batch`", "got 0"),
    (f"{_HERE} --batch -3", "`batch`", "got -3"),
    (f"{_HERE} --batch 10%", "`batch`", "got 10%"),
    (f"{_HERE} --batch 1e3k", "`batch`", "got 1e3k"),
    (f"{_HERE} --batch ٣x", "`batch`", "got ٣x"),
    (f"{_HERE} --batch=", "`batch`", "got nothing"),
    (f"{_HERE} --batch-dim 7", "`batch_dim`", "got 7"),
    (f"{_HERE} --batch-dim -2", "`batch_dim`", "got -2"),
    (f"{_HERE} --timesteps 0", "`timesteps`", "got 0"),
    (f"{_HERE} --timesteps 2.5", "`timesteps`", "got 2.5"),
    (f"{_HERE} --timesteps inf", "`timesteps`", "got inf"),
    (f"{_HERE} --timesteps nan", "`timesteps`", "got nan"),
    (f"{_HERE} --table horowtz", "`table`", "'horowtz'", "'horowitz_fp32'"),
    (f"{_HERE} --table lemaire,lemaire", "`table`", "'lemaire', 'lemaire'", "different names"),
    (f"{_HERE} --table folder", "`table`", "'folder'"),
    (f"{_HERE} --table words.yaml", "'words.yaml'", "`ac`"),
    (f"{_HERE} --table tabs.yaml", "'tabs.yaml'", "line 2"),
    (f"{_HERE} --table nowhere.yaml", "'nowhere.yaml'"),
    (f"{_HERE} --input-events maybe", "`input_events`", "true or false", "got maybe"),
    (f"{_HERE} --count-zero-weights 2", "`count_zero_weights`", "true or false", "got 2"),
    (f"{_HERE} --data nowhere.pt", "`data`", "'nowhere.pt'"),
    (f"{_HERE} --data folder", "`data`", "'folder'"),
    (f"{_HERE} --data text.pt", "`data`", "'text.pt'"),
    (f"{_HERE} --output words.yaml", "words.yaml/profile.json", "Move that file away"),
    (f"{_HERE} --inputshape 4", "`--inputshape`", "Did you mean `--input-shape`?"),
    *(
        (f"{words} --config {name}.yaml", "`config`", f"'{name}.yaml'")
        for words in (_HERE, "report run", "compare run", "front text.csv", "sweep")
        for name in ("words", "empty", "list", "tabs", "latin", "nowhere")
    ),
    (f"{_HERE} --config folder", "`config`", "'folder'"),
    (f"{_HERE} --config", "`--config`", "as in --config "),
    ("report", "`run`", "snnreg report --help"),
    ("report nowhere", "`run`", "'nowhere'", "ExportReport wrote"),
    ("report folder", "`run`", "'folder'"),
    ("report words.yaml", "`run`", "'words.yaml'"),
    ("report run", "run/report.json", "lacks samples", "written once more"),
    ("report broken", "broken/report.json", "written once more"),
    ("report a b c", "'b'", "behind its option"),
    ("report run --outptu x.html", "`--outptu`", "Did you mean `--output`?"),
    ("compare", "`runs`", "snnreg compare --help"),
    ("compare nowhere", "'nowhere'", "run `snnreg export`"),
    ("compare folder folder", "'folder'", "run `snnreg export`"),
    ("compare text.pt", "'text.pt'", "run `snnreg export`"),
    ("compare run --ouput page.html", "`--ouput`", "Did you mean `--output`?"),
    ("front", "`results`", "snnreg front --help"),
    ("front nowhere.csv", "`results`", "'nowhere.csv'"),
    ("front folder", "`results`", "'folder'", "that `snnreg sweep` wrote"),
    ("front text.csv", "`results`", "'text.csv'", "no column penalty", "that `snnreg sweep` wrote"),
    ("front empty.yaml", "`results`", "'empty.yaml'", "no column penalty", "that `snnreg sweep` wrote"),
    ("front latin.yaml", "`results`", "'latin.yaml'", "no text in UTF-8", "that `snnreg sweep` wrote"),
    ("front 'ein Ordner/Zahlen \u00fc.csv'", "`results`", "'ein Ordner/Zahlen \u00fc.csv'", "no column penalty"),
    (f"{_HERE} --input-shape [4]", "`input_shape`", "an integer", "got [4]"),
    (f"{_HERE} --table latin.yaml", "`table`", "'latin.yaml'", "no text in UTF-8"),
    ("front text.csv --outpt page.html", "`--outpt`", "Did you mean `--output`?"),
    ("recipes nothing", "`name`", "'nothing'", "lists them"),
    ("recipes digits_lenet_finetun", "`name`", "Did you mean `digits_lenet_finetune`?"),
    ("recipes digits_lenet_finetune --output words.yaml", "`output`", "'words.yaml'", "Name another one"),
    ("recipes digits_lenet_finetune --output nowhere/x.yaml", "`output`", "'nowhere/x.yaml'", "Make the folder"),
    ("recipes digits_lenet_finetune --output words.yaml/x", "`output`", "'words.yaml/x'", "Make the folder"),
    ("recipes digits_lenet_finetune --output folder", "`output`", "'folder'", "Name another one"),
    ("recipes a b", "'b'"),
    ("recipes --ouptut x", "`--ouptut`", "Did you mean `--output`?"),
    ("sweep", "`recipe`", "--recipe recipes/digits_lenet_none.yaml"),
    ("sweep --config", "`--config`", "as in --config "),
    ("sweep --config folder", "`config`", "'folder'"),
    ("sweep --confg x.yaml", "`--confg`", "Did you mean `--config`?"),
    (f"{_SWEEP} --workers two", "`workers`", "got two"),
    (f"{_SWEEP} --seeds []", "`seeds`", "got []"),
    (f"{_SWEEP} --seeds x", "`seeds`", "a list, such as [1, 2]", "got x"),
    (f"{_SWEEP} --steps [0]", "`steps`", "got [0]"),
    (f"{_SWEEP} --steps [4,2.5]", "`steps`", "got [4, 2.5]"),
    (f"{_SWEEP} --penalties.l7.strength 1", "`penalties`", "'l7'"),
    (f"{_SWEEP} --penalties.l1.strenght 1", "`penalties.l1`", "'strenght'", "Did you mean 'strength'?"),
    (f"{_SWEEP} --trials=-1", "`trials`", "got -1"),
    (f"{_SWEEP} --recipe nowhere.yaml", "'nowhere.yaml'"),
    (f"{_SWEEP} --budgets.sops -5", "`sops`", "got -5"),
    (f"{_SWEEP} --exports.a.treshold max", "`exports.a`", "'treshold'", "Did you mean 'threshold'?"),
    (f"{_SWEEP} --regularization.layrs x", "`regularization`", "'layrs'", "Did you mean 'layers'?"),
    (f"{_SWEEP} --output words.yaml", "`output`", "'words.yaml'", "Move that file away"),
]
_FIT = "fit --config recipes/digits_lenet_finetune.yaml"
_EXPORT = "export --config recipes/digits_lenet_expected_rate.yaml"
_OPTIMIZER = "--model.init_args.optimizer"
_RATE, _REPORT = "--callback.ActivityRegularization", "--callback.ExportReport"
OF_LIGHTNING = [
    ("fit", "a recipe, as in --config", "snnreg fit --help"),
    ("-x", "`-x`"),
    ("--config recipes/digits_lenet_none.yaml", "a subcommand before all options", "as in snnreg fit"),
    *((f"{_FIT} --trainer.max_epochs={value}", "`trainer.max_epochs`", value) for value in ("10%", "1e3k", "nan")),
    (f"{_FIT} --trainer.max_epochs=", "`trainer.max_epochs`", "an integer, but got nothing"),
    (f"{_FIT} --trainer.max_epochs=-3", "`max_epochs`", "-3"),
    (f"{_FIT} --trainer.max_epochs=[1,2]", "`trainer.max_epochs`", "[1, 2]"),
    (f"{_FIT} --trainer.max_epocs=3", "`--trainer.max_epocs`", "Did you mean `--trainer.max_epochs`?"),
    (f"{_FIT} --trainer.accelerator=cpuu", "'cpuu'", "Available names"),
    (f"{_FIT} --trainer.accelerator=cpu --trainer.devices=-3", "`devices`", "int > 0"),
    (f"{_FIT} --trainer.precision=17", "`trainer.precision`", "one of 64, 32, 16", "got 17"),
    (f"{_FIT} --trainer.limit_test_batches=1.5", "limit_test_batches", "1.5"),
    (f"{_FIT} --trainer.strategy=ddpp", "'ddpp'", "ddp_spawn"),
    (f"{_FIT} --seed_everything=-1", "-1", "0 to 4294967295"),
    (f"{_FIT} --model=Clasifier", "'Clasifier'", "Did you mean `Classifier`?"),
    *(
        (f"{_FIT} --model.init_args.{name}={value}", f"`{name}`", value)
        for name, value in (("timesteps", "2.5"), ("timesteps", "inf"), ("timesteps", "0"), ("beta", "2"))
    ),
    (f"{_FIT} {_OPTIMIZER}.init_args.lr=fast", "`lr`", "a number", "got fast"),
    (f"{_FIT} {_OPTIMIZER}.init_args.lr=[1,2]", "`lr`", "a number", "got [1, 2]"),
    (f"{_FIT} {_OPTIMIZER}=Adm", "'Adm'", "`optimizer`", "Did you mean `Adam`?"),
    (f"{_FIT} --optimizer.lr=fast", "`lr`", "Optimizer", "--optimizer=Adam --optimizer.lr=VALUE"),
    (f"{_FIT} --optimizer=Adam --optimizer.lr=fast", "`lr`", "a number", "got fast"),
    (f"{_FIT} --lr_scheduler.gamma=x", "`gamma`", "--lr_scheduler=StepLR --lr_scheduler.gamma=VALUE"),
    (f"{_FIT} --lr_scheduler=StepLR --lr_scheduler.step_size=x", "`step_size`", "an integer", "got x.\n"),
    (f"{_FIT} --lr=fast", "no option `--lr`", "--lr_scheduler"),
    (f"{_FIT} --trainer.logger=maybe", "`trainer.logger`", "true or false", "got maybe"),
    (f"{_FIT} --trainer.logger=CSVLoger", "'CSVLoger'", "Did you mean `CSVLogger`?"),
    (
        f"{_FIT} --trainer.callbacks+=ActivityRegularisation",
        "`trainer.callbacks`",
        "Did you mean `ActivityRegularization`",
    ),
    (f"{_FIT} --data=LeNet", "`data`", "'LeNet'", "of another kind"),
    (f"{_FIT} --data=nets.Net", "`data`", "nets.Net", "LightningDataModule", "derives from it"),
    (f"{_FIT} --model=nets.Net", "`model`", "nets.Net", "--model=Classifier --model.network=my_module.Net"),
    (f"{_FIT} --model.init_args.network=nets.Nt", "`network`", "'nets.Nt'", "Did you mean `Net`?"),
    (f"{_FIT} --model.network.init_args.chanels=3", "`chanels`", "It takes image_shape, "),
    (f"{_FIT} --model.init_args.network.init_args.num_classes=[3]", "`num_classes`", "an integer", "got [3]"),
    (f"{_FIT} --data.batch_size=[1,2]", "`batch_size`", "an integer", "got [1, 2]"),
    (f"{_FIT} --config older.yaml", "'snnreg_plugins.callbacks.ActivityRegularizer'", "`ActivityRegularization`?"),
    (f"{_FIT} --config other.yaml", "`timestep`", "Did you mean `timesteps`?"),
    (f"{_FIT} --model.init_args.threshold=maxx", "`threshold`", "Did you mean `max`?"),
    (f"{_FIT} --model.init_args.network.init_args.kernel=3", "`kernel`", "Did you mean `kernel_size`?"),
    (f"{_FIT} --model.init_args.checkpoint=folder", "`checkpoint`", "'folder'"),
    (f"{_FIT} --data.init_args.sise=3", "`sise`", "Did you mean `size`?"),
    (f"{_FIT} --data.init_args.batch_size=0", "`batch_size`", "got 0"),
    *((f"{_FIT} {_RATE}.strength={value}", "`strength`", value) for value in ("nan", "inf", "-1", "1e3k")),
    (f"{_FIT} {_RATE}.strenght=2", "`strenght`", "Did you mean `strength`?"),
    (f"{_FIT} {_REPORT}.steps=4,x", "`steps`", "a list, such as [1, 2]", "got 4,x"),
    (f"{_FIT} {_REPORT}.steps=[0]", "`steps`", "got [0]"),
    (f"{_FIT} {_REPORT}.table=[lemaire,lemair]", "`table`", "'lemair'", "'lemaire'"),
    (f"{_FIT} {_REPORT}.html=maybe", "`html`", "true or false"),
    *((f"{_FIT} --config {name}.yaml", "`config`", f"'{name}.yaml'") for name in ("list", "tabs", "latin")),
    ("test --config recipes/digits_lenet_finetune.yaml", "`checkpoint`", "runs/digits_lenet_expected_rate/dnn.ckpt"),
    (f"{_EXPORT}", "`ckpt_path`", "Add --ckpt_path", "All options: snnreg export --help"),
    (f"{_EXPORT} --ckpt_path x --treshold=max", "`--treshold`", "Did you mean `--threshold`?"),
    (f"{_EXPORT} --ckpt_path x --threshold=maxx", "`threshold`", "Did you mean `max`?"),
    (f"{_EXPORT} --ckpt_path words.yaml", "`ckpt_path`", "'words.yaml'"),
]


@pytest.fixture
def answer(monkeypatch, tmp_path, capsys):
    """What a command line is answered with."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.yaml").write_bytes(b"trainer: \xff\xfe")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "nets", raising=False)

    def typed(words):
        monkeypatch.setattr(sys, "argv", ["snnreg", *shlex.split(words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        code = stop.value.code
        assert isinstance(code, str) or code == 2, code  # a text is told, and the exit code 1
        return f"{code}\n{capsys.readouterr().err}"

    return typed


def check(said, names):
    assert len(said.splitlines()) <= 8
    assert "error: " in said
    assert "Traceback" not in said
    assert "[Errno" not in said
    for name in names:
        assert name in said


@pytest.mark.parametrize(("words", "names"), [(words, names) for words, *names in QUICK], ids=[row[0] for row in QUICK])
def test_what_is_wrong_is_told(words, names, answer):
    before = sorted(Path().rglob("*"))
    check(answer(words), names)
    left = [path for path in Path().rglob("*") if path not in before and "__pycache__" not in path.parts]
    assert not left  # nothing was begun


def test_what_the_system_forbids_is_told(answer, monkeypatch):
    # Nothing is forbidden to the user that tests in a container run as.
    def forbidden(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", forbidden)
    check(answer("front text.csv"), ["`results`", "may not use 'text.csv'", "chmod"])
    monkeypatch.setattr(Path, "read_text", forbidden)
    check(answer("report run"), ["may not use 'run/report.json'", "chmod"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "names"), [(words, names) for words, *names in OF_LIGHTNING], ids=[row[0] for row in OF_LIGHTNING]
)
def test_what_is_wrong_for_lightning_is_told(words, names, answer):
    check(answer(words), names)
