"""Mistakes in the arguments of a command, in words for people."""

import re
from typing import Any

import typer

UsageError: Any = typer.BadParameter.__mro__[1]
"""What Typer raises for wrong arguments. It exports only this subclass."""

_RULES = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
"""What an option must be, by pydantic's type of error."""


def usage_message(error: Any) -> str:
    """One line that says what is wrong with a command's arguments, and how to see its usage.

    Args:
        error: A `UsageError`.

    Returns:
        The message, empty if there were no arguments at all and the help has been printed.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    path = error.ctx.command_path if error.ctx else "vitsearch"
    command = path.removeprefix("vitsearch").strip()
    problem = _problem(error).rstrip(".")
    return f"{f'{command}: ' if command else ''}{problem}{'' if problem.endswith('?') else '.'} See: {path} --help"


def _problem(error: Any) -> str:
    kind = type(error).__name__
    if kind == "MissingParameter":
        return f"{_name(error)} is missing"
    if kind == "NoSuchOption":
        nearest = sorted(error.possibilities or ())
        hint = f". Did you mean {' or '.join(nearest)}?" if nearest else ""
        return f"there is no option {error.option_name}{hint}"
    if kind == "BadParameter" and error.param is not None:
        return f"{_name(error)} must be {_rule(error)}"
    message = str(error.message)
    extra = re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message)
    if extra:
        return f"unexpected: {extra[1]}"
    valueless = re.fullmatch(r"Option '?(--?[\w-]+)'? requires an argument\.?", message)
    if valueless:
        return f"{valueless[1]} needs a value"
    message = message.replace("No such command", "there is no command")
    return message[:1].lower() + message[1:]


def _rule(error: Any) -> str:
    """What a value must be, and what was given."""
    causes = error.__cause__.errors() if hasattr(error.__cause__, "errors") else []
    if not causes:
        return str(error.message)
    cause = causes[0]
    choices = re.search(r"is not one of (.+?)\.?$", cause["msg"])
    if choices:
        rule = "one of " + choices[1].replace("'", "")
    elif cause["type"] in _RULES:
        rule = _RULES[cause["type"]].format(**cause.get("ctx", {}))
    else:
        rule = f"valid ({cause['msg']})"
    return f"{rule}, but got {cause['input']!r}"


def _name(error: Any) -> str:
    """The option or argument as it is written: `--format`, `STUDY`."""
    parameter = error.param
    if parameter is None:
        return "an argument"
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper()).strip("[]{}.")
    return str(max(parameter.opts, key=len))
