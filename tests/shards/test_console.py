"""Errors are one sentence with a status; progress counts."""

import pytest
import typer

from shards import console
from shards.errors import DamagedSample, UserError


def app_that(action: object) -> typer.Typer:
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(flag: bool = False) -> None:
        if isinstance(action, BaseException):
            raise action

    return app


@pytest.mark.parametrize(
    ("action", "status", "stderr"),
    [
        (None, 0, ""),
        (UserError("`out` (=/x) is wrong"), 2, "error: `out` (=/x) is wrong\n"),
        (DamagedSample("shard-000001.tar is short"), 1, "error: shard-000001.tar is short\n"),
        (typer.Exit(1), 1, ""),
    ],
)
def test_exit_status_and_message(action: object, status: int, stderr: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        console.run(app_that(action), [])
    assert exit_.value.code == status
    assert capsys.readouterr().err == stderr


def test_unknown_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        console.run(app_that(None), ["--flgg"])
    assert exit_.value.code == 2
    assert "--flgg" in capsys.readouterr().err


def test_other_exceptions_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        console.run(app_that(ZeroDivisionError()), [])


def test_plain_progress_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    with console.progress("build", total=3) as bar:
        bar.advance(2)
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["build: 2/3", "build: 3/3", "build: 3/3"]
    assert "ETA" in lines[0]
