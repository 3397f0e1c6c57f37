"""Wrong arguments of a command, and questions that are not answered: one line each, like any other mistake."""

import pytest
import typer

from tests.tiny import CommandLine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["statu"], "vitsearch: there is no command 'statu'. Did you mean 'status'? See: vitsearch --help"),
        (["status"], "vitsearch: status: STUDY is missing. See: vitsearch status --help"),
        (["list", "--servr"], "there is no option --servr. Did you mean --server? See: vitsearch list --help"),
        (["list", "--format", "xml"], "list: --format must be one of text, json, but got 'xml'. See: "),
        (["list", "--server"], "--server needs a value. See: "),
        (["serve", "--port", "99999"], "serve: --port must be at most 65535, but got '99999'. See: "),
        (["data", "x", "--image-size", "big"], "data: --image-size must be a whole number, but got 'big'. See: "),
        (["owner", "weight", "ann", "much"], "owner weight: WEIGHT must be a number, but got 'much'. See: "),
        (["token", "create", "a", "b"], "token create: unexpected: b. See: vitsearch token create --help"),
        (["token", "lst"], "token: there is no command 'lst'. Did you mean 'list'? See: vitsearch token --help"),
        (["export", "tiny"], "export: name either --format (safetensors, torch-export or onnx) or --optuna URL. See: "),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_remedy(
    arguments: list[str], message: str, command_line: CommandLine
) -> None:
    done = command_line(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert message in done.err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(KeyboardInterrupt(), 130, "interrupted"), (typer.Abort(), 1, "nothing was done")],
)
def test_an_interrupt_is_reported_wherever_it_comes(
    error: BaseException,
    status: int,
    message: str,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(*_args: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr("orchestrator.cli.showing.list_command", end)
    done = command_line("list")
    assert (done.status, done.err) == (status, f"vitsearch: {message}\n")


def test_no_arguments_print_the_help_of_a_group(command_line: CommandLine) -> None:
    done = command_line("token")
    assert done.status == 2
    assert "revoke" in done.out
    assert done.err == ""
