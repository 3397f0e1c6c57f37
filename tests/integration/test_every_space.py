"""Studies on the spaces other than As-ViT, with options of their blocks: every stage that depends on topologies."""

from pathlib import Path

import pytest

from plugins.registry import available, parse_topology
from search_spaces.base import Growable
from tests.tiny import read_rows, run_here

STUDY = """\
study: spaces
seed: 3
data: {source: digits, image_size: 32, max_images: 120, max_test_images: 60}
stages:
  - stage: screen
    space: %(space)s
    sampler: {name: tpe, num_startup_trials: 2}
    num_trials: 4
    batch_size: 4
    proxies: [{name: length-distortion, repeats: 1}, {name: ntk-condition, repeats: 1}, params, flops]
  - stage: grow
    topology: '%(start)s'
    target_params: %(target)s
    width_ratios: [0.25]
    max_steps: 4
    repeats: 1
    reduction: 1
    multiples: {head_width: 2}
    batch_size: 4
  - stage: train
    candidates: {best: 2, spread: 2}
    sampler: random
    num_trials: 6
    epochs: 2
    keep_checkpoints: 2
    recipe:
      batch_size: 32
      learning_rate: {low: 1e-3, high: 4e-3, log: true}
      drop_path: 0.1
  - stage: averaging
    num_trials: 2
    methods: [last, {name: lawa, window: 2, spacing: 1}]
  - {stage: correlate, resamples: 100}
  - stage: promote
"""
SPACES = {
    "autoformer": {
        "space": "{name: autoformer, patch_size: 16, options: {layer_scale: [false, true], merged_tokens: 1}}",
        "start": "autoformer:2,2|4,2|16,8|grn,deep_supervision",
        "target": "16_000",
    },
    "pit": {
        "space": "{name: pit, patch_size: 8, options: {qk_norm: true, sigmoid_attention: [false, true]}}",
        "start": "pit:1,1|1,2|1,2|2,8,8|layer_scale,deep_supervision",
        "target": "18_000",
    },
}


def test_every_space_has_its_study() -> None:
    assert {"as-vit", *SPACES} == set(available("spaces"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "pit" else pytest.mark.slow) for name in sorted(SPACES)]
)
def test_every_stage_works_on_the_space(tmp_path: Path, name: str) -> None:
    file, home = tmp_path / "study.yaml", tmp_path / "home"
    file.write_text(STUDY % SPACES[name], encoding="utf-8")
    study = run_here(file, home)
    assert study.state == "complete", study.reason
    rows = read_rows(home, "spaces")
    assert {stage.state for stage in rows.stages.values()} == {"complete"}

    screened = rows.trials["screen"]
    assert len({trial.details["topology"] for trial in screened}) == len(screened) == 4
    assert all(trial.details["topology"].startswith(f"{name}:") for trial in screened)
    assert all({"length-distortion", "ntk-condition"} <= trial.metrics.keys() for trial in screened)

    grown = rows.stages["grow"].result
    first, last = parse_topology(grown["start"]), parse_topology(grown["selected"][0])
    assert isinstance(first, Growable)
    assert isinstance(last, Growable)
    assert last.width > first.width
    assert sum(last.depths) == sum(first.depths) + len(grown["family"])
    assert grown["final"]["parameters"] >= int(SPACES[name]["target"])

    trained = rows.trials["train"]
    everything = {*grown["selected"], *(trial.details["topology"] for trial in screened)}
    assert {trial.point["topology"] for trial in trained} == everything
    assert all(trial.metrics["epochs"] == 2 for trial in trained)
    champion = rows.stages["promote"].result
    assert 0 <= champion["test_accuracy"] <= 1
