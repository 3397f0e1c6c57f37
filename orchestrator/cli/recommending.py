"""The command recommend, which finds earlier studies of similar data."""

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.console import fail, note, out, print_json, stderr
from orchestrator.cli.decoding import advise_skip_broken, show_decoding
from orchestrator.cli.exit_status import BAD_INPUT, FAILED
from orchestrator.cli.remote import client_of
from orchestrator.evaluation.data_similarity import DataDifference, DataDistance
from orchestrator.reports.summary import configuration_yaml
from orchestrator.settings import load_settings
from orchestrator.spec.budget import seconds_of
from orchestrator.spec.study_file import make_data_config
from orchestrator.study.recommending import Recommendation, Recommendations, Wanted, recommend
from orchestrator.study.reported import minutes_text
from plugins import registry
from search_spaces.recipes import Recipe, describe_plugin
from trainers.config import Configuration

_WIDTH = 80
_FACTORS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def recommend_command(
    source: str,
    *,
    settings: Mapping[str, Any],
    max_params: str | None,
    space: str | None,
    budget: str | None,
    top: int,
    file: Path | None,
    server: str | None,
    as_json: bool,
) -> None:
    """Print the nearest studies with their configurations, and write that of the first one into a file."""
    spaces = registry.available("spaces")
    if space is not None and space not in spaces:
        nearest = registry.nearest_name(space, spaces)
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        fail(f"--space must be one of {', '.join(spaces)}, but got {space!r}.{hint}", status=BAD_INPUT)
    wanted = Wanted(
        max_params=None if max_params is None else _count_of(max_params),
        space=space,
        budget_s=None if budget is None else _budget_of(budget),
    )
    config = make_data_config({"source": source, "resize": "stretch", **settings})
    from trainers.data.describing import describe_data  # imports torch

    installed, client = load_settings(), client_of(server)
    with advise_skip_broken(), show_decoding(stderr):
        report = describe_data(config).report
    if client:
        sent = client.recommend(report.model_dump(mode="json"), config.model_dump(mode="json"), **wanted._asdict())
        found = _received(sent)
    else:
        found = recommend(report, config, wanted, installed)
    if file is not None and found.near:
        _write(file, found.near[0])
    if as_json:
        print_json(_as_json(found, top))
    else:
        out(f"{report.lines()[0]}\n\n{recommendations_text(found, top, names_out=file is None)}")
    if file is not None and not found.near:
        fail(f"{file} is not written, because no finished study has data like these", status=FAILED)
    if file is not None:
        note(f"the configuration of {found.near[0].study} is in {file}; train it with: vitsearch train {file}")


def _received(sent: Mapping[str, Any]) -> Recommendations:
    """What a service recommends."""

    def one(row: Mapping[str, Any]) -> Recommendation:
        differences = tuple(DataDifference(**each) for each in row["differences"])
        return Recommendation(
            study=row["study"],
            distance=DataDistance(row["distance"], differences),
            configuration=Configuration.model_validate(row["configuration"]),
            trial=row["trial"],
            is_champion=row["is_champion"],
            result=row["result"],
            parameters=row["parameters"],
            time_s=row["time_s"],
        )

    left_out = tuple((row["study"], row["reason"]) for row in sent["left_out"])
    return Recommendations(tuple(one(row) for row in sent["recommendations"]), left_out)


def recommendations_text(found: Recommendations, top: int, *, names_out: bool = True) -> str:
    """The nearest studies for people; states plainly if none is near."""
    parts = []
    if not found.near:
        count = len(found.found)
        if not count:
            parts.append("No finished study can be compared with these images.")
        else:
            studies = "1 finished study" if count == 1 else f"{count} finished studies"
            parts.append(
                f"Nothing is near: {studies} can be compared, but all have data that differ a lot. Start "
                "a new study; the nearest one is:"
            )
        parts[0] = textwrap.fill(parts[0], _WIDTH)
    shown = found.near[:top] or found.found[:1]
    parts += [_block(one) for one in shown]
    if found.near and names_out:
        parts.append("`--out best.yaml` writes the first configuration, with your images, for `vitsearch train`.")
    reasons = [reason if name is None else f"{name}: {reason}" for name, reason in found.left_out]
    if reasons:
        parts.append(
            "Not considered:\n" + "\n".join(textwrap.fill(one, _WIDTH, initial_indent="  ") for one in reasons)
        )
    return "\n\n".join(parts)


def _block(one: Recommendation) -> str:
    differences = "; ".join(difference.text for difference in one.distance.differences)
    alike = (
        f"{'its data have ' + differences if differences else 'data like these'} (distance {one.distance.total:.1f})"
    )
    origin = "its champion" if one.is_champion else f"its trial {one.trial}, the best that satisfies what is wanted"
    configuration = one.configuration
    default = Recipe().model_dump(mode="json")
    changed = {
        name: value
        for name, value in configuration.recipe.model_dump(mode="json").items()
        if value != default.get(name)
    }
    recipe = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in changed.items()) or "the default"
    lines = [
        (None, f"{one.study}: {alike}"),
        ("gave", f"{one.result} with {one.parameters:,} parameters ({origin}), in {minutes_text(one.time_s)}"),
        ("topology", configuration.topology),
        ("recipe", f"{recipe}; {configuration.epochs} epochs, averaging {describe_plugin(configuration.averaging)}"),
        ("to use it", f"warm_start: {{study: {one.study}, top: 5}} in the train stage of a new study"),
    ]
    return "\n".join(
        textwrap.fill(
            text if name is None else f"{name:<10} {text}",
            _WIDTH,
            initial_indent="" if name is None else "  ",
            subsequent_indent="    " if name is None else " " * 13,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in lines
    )


def _short(value: Any) -> str:
    """A value of a recipe: a number, a method with its settings, several methods, or a function of progress."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " + ".join(map(_short, value))
    if isinstance(value, Mapping):
        settings = ", ".join(f"{name} {_short(one)}" for name, one in value.items() if name != "name")
        return f"{value.get('name', '')} ({settings})".strip() if settings else str(value.get("name"))
    return str(value)


def _as_json(found: Recommendations, top: int) -> dict[str, Any]:
    def row(one: Recommendation) -> dict[str, Any]:
        return {
            **one._asdict(),
            "distance": one.distance.total,
            "is_near": one.distance.is_near,
            "differences": [difference._asdict() for difference in one.distance.differences],
            "configuration": one.configuration.model_dump(mode="json"),
        }

    return {
        "recommendations": [row(one) for one in found.near[:top]],
        "nearest": row(found.found[0]) if found.found else None,
        "left_out": [{"study": name, "reason": reason} for name, reason in found.left_out],
    }


def _write(file: Path, one: Recommendation) -> None:
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(configuration_yaml(one.configuration, None))
    except FileExistsError:
        fail(f"{file} must not exist yet, but does. Name another with --out.", status=FAILED)
    except OSError as error:
        fail(f"{file} must be writable, but: {error.strerror}. Name another with --out.", status=FAILED)


def _count_of(text: str) -> int:
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)\s*([kMG]?)", text.strip())
    count = round(float(match[1]) * _FACTORS[match[2]]) if match else 0
    if not count:
        fail(f"--max-params must be a number above 0, such as 500k or 2M, but got {text!r}.", status=BAD_INPUT)
    return count


def _budget_of(text: str) -> float:
    seconds = seconds_of(text)
    if not seconds:
        fail(f"--budget must be a time with its unit, such as 30m or 2h, but got {text!r}.", status=BAD_INPUT)
    return seconds
