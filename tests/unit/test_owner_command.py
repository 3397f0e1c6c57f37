"""`vitsearch owner`: the shares of owners."""

import pytest

from tests.tiny import CommandLine


@pytest.mark.parametrize("weight", ["0", "1000", "nan"])
def test_an_impossible_weight_is_refused(weight: str, command_line: CommandLine) -> None:
    done = command_line("owner", "weight", "ann", weight)
    assert (done.status, "weight: must be from 0.01 to 100" in done.err) == (2, True), done.err


def test_a_weight_is_set_and_listed(command_line: CommandLine) -> None:
    assert "No owners yet" in command_line("owner", "list").out
    assert command_line("owner", "weight", "ann", "2").status == 0
    assert command_line("owner", "list", "--format", "json").json() == [{"name": "ann", "weight": 2.0, "used_s": 0.0}]
    assert "ann" in command_line("owner", "list").out
