"""Files from others cost no more than their size warrants."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from snnreg_plugins._files import atomic, read_json, read_yaml, write_json


def test_yaml_is_read_up_to_a_size_and_a_number_of_values(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("mac: 4.6\nsource: [a, {b: c}]\n")
    assert read_yaml(path, "table") == {"mac": 4.6, "source": ["a", {"b": "c"}]}
    path.write_text("\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]))
    with pytest.raises(ValueError, match=r"`table` .*table\.yaml' cannot be read: it holds more than 10,000 values"):
        read_yaml(path, "table")
    assert len(read_yaml(path, "table", most=None)) == 12
    path.write_text("a: &a [*a]")
    with pytest.raises(ValueError, match="more than 10,000 values"):
        read_yaml(path, "table")
    path.write_text("#" * 300_000)
    with pytest.raises(ValueError, match="larger than 262,144 bytes"):
        read_yaml(path, "table")
    path.write_text("[" * 3000)
    with pytest.raises(ValueError, match="cannot be read"):
        read_yaml(path, "table")


@dataclass
class Spent:
    parts: dict[str, float] | None


def test_json_holds_dicts_of_checked_values(tmp_path):
    path = tmp_path / "spent.json"
    for spent in (Spent({"memory": 1.0, "[/x]": 2.0}), Spent(None)):
        write_json(path, vars(spent))
        assert read_json(path, Spent) == spent
    for wrong in ('{"parts": {"memory": "1"}}', '{"parts": [1]}', '{"parts": {"memory": NaN}}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"to hold a Spent, but Spent\.parts"):
            read_json(path, Spent)


@pytest.mark.parametrize("name", ["taken/page.html", "taken/deeper/page.html"])
def test_a_file_where_a_folder_should_be_is_told(tmp_path, name):
    (tmp_path / "taken").write_text("mine")
    told = r"`path` .*page\.html', and on the way to it is a file .* Move that file away, or"
    with pytest.raises(OSError, match=told), atomic(tmp_path / name):
        pass
    assert (tmp_path / "taken").read_text() == "mine"
