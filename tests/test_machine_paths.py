"""Test that home folders are expanded, and that records for readers hold no absolute path."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtsae_lens.errors import ConfigError
from mtsae_lens.machine_paths import check_path, expand_home, last_part, shorten, shorten_name, shorten_names, shorten_settings


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("home/me", "work"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home/me"))
    monkeypatch.chdir(tmp_path / "work")


def test_the_home_folder_in_every_part(tmp_path: Path) -> None:
    home = tmp_path / "home/me"
    assert expand_home("~") == str(home)
    assert expand_home("bridge:~/lm") == f"bridge:{home}/lm"
    assert expand_home("~/a+kjv+~/b") == f"{home}/a+kjv+{home}/b"
    assert expand_home("a~b/~c") == "a~b/~c"
    with pytest.raises(ConfigError, match=r"give \./~who-is-this"):
        expand_home("~who-is-this/x")


def test_names_that_no_file_system_takes() -> None:
    for name in ("a\0b", "x" * 300, "a/" * 3000):
        with pytest.raises(ConfigError):
            check_path(name)
    check_path("+".join(["x" * 200] * 4))


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("{tmp}/work/a/t.txt", "a/t.txt"),
        ("{tmp}/home/me/t.txt", "~/t.txt"),
        ("/srv/secret/t.txt", ".../t.txt"),
        ("bridge:/srv/secret/lm", "bridge:.../lm"),
        ("kjv+/srv/secret/t.jsonl@lang=en", "kjv+.../t.jsonl@lang=en"),
        ("--dataset=/srv/secret/t.txt", "--dataset=.../t.txt"),
        ("/srv/secret/sae: forgetting /srv/other/t.txt at a hook.", ".../sae: forgetting .../t.txt at a hook."),
        ("and/or 1/2 https://example.org/a/b ./a/b ../a/b a/b/c", "and/or 1/2 https://example.org/a/b ./a/b ../a/b a/b/c"),
        ("C:\\Users\\me\\t.txt", ".../t.txt"),
    ],
)
def test_paths_are_shortened(tmp_path: Path, text: str, short: str) -> None:
    assert shorten(text.format(tmp=tmp_path)) == short


def test_a_path_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts" / "t 1.txt").write_text("x")
    assert shorten(f"{tmp_path}/my texts/t 1.txt") == ".../t 1.txt"
    assert shorten_name(f"{tmp_path}/my texts/t 1.txt#3") == ".../t 1.txt#3"


def test_in_any_working_directory(tmp_path: Path) -> None:
    assert shorten(f"{tmp_path}/work/a/t.txt", anywhere=True) == ".../t.txt"


def test_settings_and_records() -> None:
    settings = {"retain": ("/srv/a/t.txt", "kjv"), "sae": {"x": "/srv/b/y"}, "n": 3}
    assert shorten_settings(settings) == {"retain": [".../t.txt", "kjv"], "sae": {"x": ".../y"}, "n": 3}
    record = {"corpora": {"/srv/a/t.txt": 1, "/srv/b/t.txt": 2, "kjv": 3}, "sample": "/ or /x/y in a sentence", "n": 1.5}
    assert shorten_names(record) == {
        "corpora": {".../t.txt": 1, ".../t.txt (2)": 2, "kjv": 3},
        "sample": "/ or /x/y in a sentence",
        "n": 1.5,
    }


def test_last_parts() -> None:
    assert [last_part(name) for name in ("/a/b.txt", "C:\\a\\b.txt", "a/b.txt", "kjv")] == ["b.txt", "b.txt", "a/b.txt", "kjv"]
