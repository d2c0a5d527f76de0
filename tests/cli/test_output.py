"""Test the output to the terminal: no control characters, and a one-line error if the output is full or closed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtsae_lens.cli.output import OutputLost, print_tables, printable, say, warnings_as_lines
from mtsae_lens.errors import MTSAEWarning


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[31mb\x07\x9b1m\u202e\r\x7f") == r"a\x1b[31mb\x07\x9b1m\u202e\r\x7f"
    assert printable("two\nlines\tand é 日本") == "two\nlines\tand é 日本"


def test_tables_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(SimpleNamespace(header=["name", "x"], rows=[["[red]a\x1b[2J.txt[/red]", 1.5], ["b\nc", None]]))
    out = capsys.readouterr().out
    assert r"[red]a\x1b[2J.txt[/red]" in out
    assert "b c" in out
    assert "\x1b" not in out


def test_an_output_of_ascii_alone() -> None:
    table = "__import__('types').SimpleNamespace(header=['名', 'x'], rows=[['é', 1.0]])"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run(
        f"from mtsae_lens.cli.output import print_tables; print_tables({table}); say('日')",
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert r"\u65e5" in done.stdout
    assert done.stdout.isascii()


def test_an_output_that_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        encoding = "utf-8"

        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(
        OutputLost, match=r"expected a writable standard output, got No space left on device.*results in files"
    ) as caught:
        say("x")
    assert not caught.value.is_pipe


def test_warnings_of_ours_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        with warnings_as_lines():
            warnings.warn("two\nlines", MTSAEWarning, stacklevel=1)
        assert warnings.showwarning is before
    assert capsys.readouterr().err == "warning: two lines\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--lr", 1, "--lr", -2), "warning: --lr is given 2 times; the last value is used"),
        (("train", "--d-sae", -3, "--prepend-bos", "--no-prepend-bos"), "warning: --prepend-bos is given 2 times"),
    ],
)
def test_an_option_given_twice_is_told(mtsae: Callable[..., Any], arguments: tuple[Any, ...], message: str) -> None:
    outcome = mtsae(*arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "given" not in mtsae("train", "--resume", "--resume", "--set", "k=1", "--set", "dilations=1", "--lr", -1).err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--out", ""), "setting out: expected a value, got an empty text"),
        (("train", "--model", ""), "setting model: expected a value, got an empty text"),
        (("train", "--device", ""), "setting device: expected a value, got an empty text"),
        (("train", "--config", ""), "--config: expected a YAML file, got an empty text"),
        (("evaluate", ""), "setting sae: expected a value, got an empty text"),
        (("generate", "x", "--edit", "", "--prompt", "y"), "setting edit: expected a value, got an empty text"),
        (("upload", "x", "me/y", "--dry-run", ""), "setting dry_run: expected a value, got an empty text"),
        (("unlearn", "x", "--forget", "kjv", "--retain", ""), "setting retain: expected a value, got an empty text"),
        (("train", "--out", "~nobody-here/x"), "which names an unknown user"),
        (("train", "--model", "m" * 5000), "bytes, got 5,000 characters"),
        (("evaluate", "a\x1b[2Jb"), r"a\x1b[2Jb: expected cfg.json"),
    ],
)
def test_empty_and_impossible_options(
    mtsae: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = mtsae(*arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert "\x1b" not in outcome.err


def run(code: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process with a verb that needs no model."""
    program = (
        "import sys, mtsae_lens.cli as cli\n"
        "from mtsae_lens.cli.output import say\n"
        f"@cli.app.command()\ndef talk():\n    {code}\n"
        "sys.argv = ['mtsae', 'talk']\ncli.main()\n"
    )
    streams = {"stderr": subprocess.PIPE} | streams
    return subprocess.run([sys.executable, "-W", "ignore", "-c", program], text=True, check=False, **streams)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_standard_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = run("say('x' * 100_000)", stdout=full)
    lines = [
        line for line in done.stderr.splitlines() if line.startswith("error: expected a writable standard output, got No space")
    ]
    assert (done.returncode, len(lines)) == (1, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_closed_pipe_is_one_line() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run("[say('x' * 10_000) for _ in range(100)]", stdout=pipe)
    assert done.returncode == 141, done.stderr
    assert "error: expected a writable standard output, got Broken pipe" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


BAR = """
    import time
    from tqdm.auto import tqdm
    for _ in tqdm(range(3), desc="x" * 20_000, mininterval=0):
        print("y" * 20_000, file=sys.stderr, flush=True)
    say("whole")
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_standard_error_loses_bars_and_nothing_else(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(BAR, stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (0, "whole\n")


def test_a_standard_error_that_nobody_reads_loses_bars_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = run(BAR, stdout=subprocess.PIPE, stderr=pipe)
    assert (done.returncode, done.stdout) == (0, "whole\n")


def test_a_closed_standard_error_loses_bars_and_nothing_else() -> None:
    done = run(BAR, stdout=subprocess.PIPE, stderr=None, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (0, "whole\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_training_ends_whole_with_a_full_standard_error(
    mtsae: Callable[..., Any], tiny_model_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small: tuple[Any, ...] = ("--context-size", 32, "--batch-size-tokens", 64, "--training-tokens", 256, "--d-sae", 32)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        outcome = mtsae(
            "train",
            "--model",
            tiny_model_dir,
            "--hook-name",
            "blocks.0.hook_resid_post",
            "--dataset",
            text_file,
            *small,
            "--out",
            tmp_path / "sae",
        )
        monkeypatch.undo()
    assert outcome.code == 0
    assert (tmp_path / "sae" / "sae_weights.safetensors").is_file()


def test_memory_that_does_not_suffice_is_one_line() -> None:
    done = run(
        "raise RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes')", stdout=subprocess.PIPE
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: not enough memory (DefaultCPUAllocator")
    assert "Traceback" not in done.stderr
