"""What the docs print is compared with what benchmarks print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import all as every

ROOT = Path(__file__).parents[1]
PAGE = """
| network | T | time |
| --- | --- | --- |
| LeNet | 4 | 1.0 s |

| network | T | SNN % / kSOPs | time |
| --- | --- | --- | --- |
| LeNet | 2 | 88.2 % / 493 | 1.0 s |
| LeNet | 4 | 89.9 % / 813k | 2.0 s |
| VGG | 4 | | 3.0 s |
"""
PRINTED = """
LeNet is trained.
| network | T | SNN % / kSOPs | time |
| --- | --- | --- | --- |
| LeNet | 2 | 88.6 % / 500 | 1.0 s |
| LeNet | 4 | 89.9 % / 900k | 2.0 s |
| ResNet | 4 | 90.0 % / 1 | 7.0 s |

| network | more |
| --- | --- |
| LeNet | 7 |
"""


def test_figures_that_differ_by_more_than_their_noise_are_told_with_row_and_column():
    count, differing = every.compared(PAGE, PRINTED, every.Noise(0.5, 0.05))
    assert count == 7
    assert differing == [
        ("LeNet, 4", "SNN % / kSOPs", "89.9 % / 813k", "89.9 % / 900k"),
        ("VGG, 4", "time", "3.0 s", ""),  # which nobody printed
        ("ResNet, 4", "SNN % / kSOPs", "", "90.0 % / 1"),
        ("ResNet, 4", "time", "", "7.0 s"),
    ]
    assert [row[3] for row in every.compared(PAGE, PRINTED, every.Noise(0.2, 0.0))[1]][:2] == [
        "88.6 % / 500",
        "89.9 % / 900k",
    ]
    _, unfinished = every.compared(PAGE, PRINTED, every.Noise(0.5, 0.05), whole=False)
    assert [row[0] for row in unfinished] == ["LeNet, 4", "ResNet, 4", "ResNet, 4"]


def test_a_table_is_compared_with_the_one_of_the_same_columns_and_rows():
    header = "| penalty | T = 4 |\n| --- | --- |\n"
    page = f"{header}| none | 1.0 |\n| L1 | 2.0 |\n\n{header}| none | 7.0 |\n| L2 | 8.0 |\n"
    assert every.compared(page, f"{header}| none | 7.0 |\n| L2 | 8.0 |\n", every.Noise(0.1, 0.0)) == (2, [])
    assert every.compared(page, f"{header}| rate | 7.0 |\n", every.Noise(0.1, 0.0)) == (0, [])
    longer = f"{header}| none | 3.0 |\n| L1 | 4.0 |\n| L2 | 5.0 |\n\n{page}"
    assert every.compared(longer, f"{header}| none | 1.0 |\n| L1 | 2.0 |\n", every.Noise(0.1, 0.0)) == (2, [])


@pytest.mark.parametrize(
    ("told", "found", "noise", "is_other"),
    [
        ("1.23M", "1,234k", "0 %", False),  # as far as it is rounded
        ("1.23M", "1.25M", "0 %", True),
        ("95.9 ± 0.5 %, 1.57k", "95.1 ± 0.4 %, 1.60k", "1 point, 5 %", False),
        ("95.9 ± 0.5 %, 1.57k", "95.1 ± 0.4 %, 1.80k", "1 point, 5 %", True),
        ("95.9 ± 0.5 %, 1.57k", "94.1 ± 0.4 %, 1.57k", "1 point, 5 %", True),
        ("734k ± 83k", "735k ± 60k", "5 %", False),  # a spread is as noisy as its mean
        ("734k ± 83k", "735k ± 10k", "5 %", True),
        ("0.35/0.06", "0.35", "10 %", True),
        ("0.35/0.06", "0.35/0.08", "10 %", True),
        ("-2.0 %", "2.0 %", "1 point, 0 %", True),
        ("1.2 %", "1.2", "1 point, 5 %", True),
        ("fails", "exact", "5 %", True),
    ],
)
def test_noise_is_in_points_or_a_share_beside_rounding(told, found, noise, is_other):
    assert every.differ(told, found, every.noise_of(noise)) is is_other


def test_the_page_of_benchmarks_names_each_that_there_is_and_pages_that_are_there():
    known = every.benchmarks((ROOT / "docs" / every.HOME).read_text())
    own = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("*.py")} - {"__init__", "common", "all"}
    assert {one.command[:2] for one in known.values()} == {("-m", f"tests.benchmarks.{name}") for name in own}
    assert known["finetuning-2"].command[:2] == known["finetuning"].command[:2]
    for one in known.values():
        assert one.noise.share
        assert not one.page or (ROOT / "docs" / one.page).is_file()


def test_what_a_benchmark_printed_is_kept_compared_and_put_into_its_page(tmp_path, monkeypatch, capsys):
    printed = "| | T = 1 | T = 2 |\n| --- | --- | --- |\n| `SpikingClassifier` | 1.0 % / 2 | 1.0 % / 2 |\n"
    monkeypatch.setattr(every, "run", lambda benchmark, limit: printed)
    monkeypatch.setattr("sys.argv", ["all", "tandem", "--update", "--output", str(tmp_path / "printed")])
    monkeypatch.setattr(every, "DOCS", tmp_path)
    for name in (every.HOME, "fine-tuning.md"):
        (tmp_path / name).write_text((ROOT / "docs" / name).read_text())
    with pytest.raises(SystemExit) as ended:
        every.main()
    assert ended.value.code == 0
    assert (tmp_path / "printed" / "tandem.md").read_text() == printed
    told = capsys.readouterr().out
    assert "0 of 6 figures are as fine-tuning.md has them." in told
    assert "1.0 % / 2" in told
    page = (tmp_path / "fine-tuning.md").read_text()
    assert printed in page
    assert len(page.splitlines()) == len((ROOT / "docs" / "fine-tuning.md").read_text().splitlines()) - 2
