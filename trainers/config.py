"""What the trainers are told and what they answer, as plain data that travels to any process."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from plugins.protocols import CurvePoint, Signal
from search_spaces.recipes import PluginChoice, Recipe

NOISE = "noise"
"""The value of `data.source` that needs no data."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Plain):
    """Where the images come from and how they are split; the test part is kept from every search."""

    source: str = Field(
        min_length=1,
        description="`digits` (scikit-learn's handwritten digits), `noise` (standard-normal pixels with random labels, "
        "for scores alone), a folder with one sub-folder per class, a folder with train.parquet (and test.parquet), or "
        "one parquet file in the Hugging Face image/label form",
    )
    image_size: int = Field(default=32, ge=8, le=1024, description="height and width that the model sees, pixels")
    resize: Literal["same", "crop", "stretch"] = Field(
        default="same",
        description="`same`: all images must be square and of one size; `crop`: shorter side scaled, centre cut out; "
        "`stretch`: both sides scaled",
    )
    validation: float = Field(default=0.2, gt=0, lt=1, description="fraction of the images that trials are judged on")
    test: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="fraction kept for the champion alone; unused where the source has a test part",
    )
    max_images: int | None = Field(
        default=None, ge=10, description="use a random subset of this many images, test part aside"
    )
    max_test_images: int | None = Field(default=None, ge=10, description="use a random subset of the test part")
    split_seed: int = Field(default=0, ge=0, description="seed of the split and of the subsets, and of `noise`")
    num_classes: int | None = Field(
        default=None, ge=2, le=100_000, description="classes of `noise`, 10 by default; other sources bring their own"
    )

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "DataConfig":
        if self.validation + self.test >= 0.95:
            raise ValueError(
                "`validation` and `test` together must stay below 0.95, "
                f"but got {self.validation} + {self.test}. Lower one of them."
            )
        return self

    @model_validator(mode="after")
    def _only_noise_is_told_its_classes(self) -> "DataConfig":
        if self.num_classes is not None and self.source != NOISE:
            raise ValueError(
                f"`num_classes` goes with `source: {NOISE}`, but the source is {self.source!r}, whose images say how "
                "many classes there are. Remove it."
            )
        return self


class Configuration(_Plain):
    """Everything that is needed to train one model again: what `vitsearch best` prints and `vitsearch train` reads."""

    data: DataConfig = Field(description="the images and how they are split")
    topology: str = Field(description="`space:text`, such as as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,16")
    recipe: Recipe = Field(description="how the model is trained")
    epochs: int = Field(ge=1, description="budget in visits of the whole training set")
    seed: int = Field(ge=0, description="of weights, order, augmentation and drop path")
    stopping: PluginChoice | None = Field(default=None, description="early-stopping criterion; null trains to the end")
    averaging: PluginChoice = Field(
        default=PluginChoice(name="last"), description="how the checkpoints become one model"
    )


class Resources(_Plain):
    """Limits of what the trials of a study may use; what is not given is found out from the devices."""

    cpus_per_trial: float | None = Field(default=None, gt=0, description="CPU cores of a trial")
    gpus_per_trial: float | None = Field(
        default=None, ge=0, description="share of a GPU below 1, or whole GPUs; 0 leaves the GPUs alone"
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="most trials at the same time; a pack counts as one"
    )
    trials_per_pack: int = Field(
        default=1,
        ge=1,
        strict=True,
        description="most trainings of one topology that are computed together in one process, with stacked weights; 1 "
        "trains each by itself",
    )
    memory_margin: float = Field(
        default=0.25, ge=0, description="memory kept free for a trial, as a fraction of what a dry run of it took"
    )

    @model_validator(mode="after")
    def _more_than_one_gpu_is_a_whole_number(self) -> "Resources":
        share = self.gpus_per_trial
        if share is not None and share > 1 and share != int(share):
            raise ValueError(
                f"`gpus_per_trial` must be a share below 1 or a whole number, but got {share}. "
                f"Take {int(share)} or {int(share) + 1}."
            )
        return self


class ScoreTask(_Plain):
    """Score one topology with training-free proxies."""

    kind: Literal["score"] = "score"
    data: DataConfig
    topology: str
    proxies: tuple[PluginChoice, ...]
    batch_size: int = 16
    seed: int
    num_classes: int | None = None
    """Of the networks that are built; `None` takes the data's."""
    need_all: bool = True
    """Whether one proxy that fails makes the whole task fail."""


class Fence(_Plain):
    """Which attempt at a training may write its files; see `trainers.training.fencing`."""

    file: Path
    """Where the newest attempt leaves its token."""
    token: int = Field(ge=1)
    """Of this attempt; a later one has a higher one."""


class TrainTask(_Plain):
    """Train one configuration, from its newest whole checkpoint in `folder` if there is one."""

    kind: Literal["train"] = "train"
    configuration: Configuration
    folder: Path
    """Where this trial's checkpoints are kept."""
    keep_checkpoints: int = Field(default=1, ge=1, description="weights of this many newest epochs are kept")
    alone: bool = False
    """Not to be computed together with others, such as after an earlier attempt took its process along."""
    signals: tuple[Signal, ...] = ()
    """Signals to measure every epoch, besides those that plug-ins of the configuration read."""
    fence: Fence | None = None
    """Of the attempt; `None` where there is never more than one."""


class PackedTrainTask(_Plain):
    """Train several configurations together; each is reported, stopped and saved as if it were alone."""

    kind: Literal["packed-train"] = "packed-train"
    tasks: tuple[TrainTask, ...] = Field(min_length=1)
    """`trainers.training.packing.can_be_packed` holds for each two of them."""


class ReplayTask(_Plain):
    """Replay recorded learning curves under a stopping criterion."""

    kind: Literal["replay"] = "replay"
    criterion: PluginChoice
    curves: tuple[tuple[CurvePoint, ...], ...] = Field(min_length=1)


class AverageTask(_Plain):
    """Average saved checkpoints and evaluate the result on the validation part."""

    kind: Literal["average"] = "average"
    configuration: Configuration
    checkpoints: tuple[Path, ...] = Field(min_length=1)
    """Folders of the checkpoints, oldest first."""
    averaging: PluginChoice


Task = Annotated[ScoreTask | TrainTask | ReplayTask | AverageTask, Field(discriminator="kind")]


class EpochReport(_Plain):
    """What a training reports after each epoch."""

    epoch: int = Field(ge=1)
    train_loss: float
    val_loss: float
    val_accuracy: float = Field(description="fraction between 0 and 1")
    learning_rate: float
    num_images: int = Field(description="training images visited in this epoch")
    training_macs: float = Field(
        default=0.0,
        ge=0,
        description="multiply-accumulates of this epoch's training, in closed form: 3 forward passes (one forward, two "
        "backward) of each image visited, 1 of each image whose difficulty was measured; 0 where it was not told",
    )
    wall_time_s: float
    signals: dict[str, float] = Field(default_factory=dict, description="the signals that were measured, by name")

    @property
    def point(self) -> CurvePoint:
        """The part of the report that stopping criteria see."""
        return CurvePoint(self.epoch, self.train_loss, self.val_loss, self.val_accuracy, self.signals)


class CheckpointRecord(_Plain):
    """One saved checkpoint."""

    epoch: int
    path: Path
    """Its folder."""
    sha256: str
    """Of the weights file."""
    num_bytes: int


class TaskOutcome(_Plain):
    """How a task ended."""

    state: Literal["complete", "stopped", "failed", "interrupted"]
    """`stopped`: by its stopping criterion; `interrupted`: asked to end early, to be gone on with later."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Finite numbers only."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Further JSON data."""
    reason: str | None = None
    """Why it stopped or failed, in words that a person can read."""
    error: Literal["out-of-memory", "not-finite", "exception", "storage", "silent"] | None = None
    """`silent`: it gave no sign of life. `storage`: nothing could or may be written, which no other trial would do
    better, so that its state is `interrupted`."""
    checkpoints: tuple[CheckpointRecord, ...] = ()
