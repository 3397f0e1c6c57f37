"""Inputs and results of trainers, as plain data that can be sent to any process."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from plugins.metrics.deciding import ACCURACY_CHOICE, DecidingMetric
from plugins.protocols import CurvePoint, Signal
from search_spaces.base import MAX_CLASSES, MAX_IMAGE_SIZE
from search_spaces.numbers import MAX_COUNT, MAX_SEED, NumericModel
from search_spaces.recipes import PluginChoice, Recipe

Precision = Literal["auto", "float32", "bfloat16"]
NOISE = "noise"
"""The value of `data.source` for generated images."""


class _Plain(NumericModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Plain):
    """Source and split of the images. No search uses the test part."""

    source: str = Field(
        min_length=1,
        description="`digits` (scikit-learn's handwritten digits), `noise` (standard-normal pixels with random labels, "
        "for scores only), a folder with one sub-folder per class, a folder with labels.csv, parquet files in the "
        "Hugging Face image/label form, or a clone of a repository of the Hugging Face hub; folders and files named "
        "train, validation and test are the parts",
    )
    image_size: int = Field(
        default=32, ge=8, le=MAX_IMAGE_SIZE, description="height and width of the model's input, in pixels"
    )
    resize: Literal["same", "crop", "stretch"] = Field(
        default="same",
        description="`same`: all images must be square and of the same size; `crop`: scale the shorter side and cut "
        "out the centre; `stretch`: scale both sides",
    )
    validation: float = Field(default=0.2, gt=0, lt=1, description="fraction of the images used to evaluate trials")
    test: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="fraction held out for the final test of the champion; unused if the source has a test part",
    )
    max_images: int | None = Field(
        default=None, ge=10, description="use a random subset of this many images, not counting the test part"
    )
    max_test_images: int | None = Field(
        default=None, ge=10, description="use a random subset of this many images of the test part"
    )
    background: str = Field(
        default="white", description="colour behind transparent pixels, as CSS names it: `white`, `black`, `#808080`"
    )
    skip_broken: bool = Field(
        default=False, description="leave out images that cannot be read, and count them, instead of stopping"
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep",
        description="`drop`: leave out training images that are also in the validation or test part, compared by their "
        "pixels",
    )
    label_noise: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="fraction of the training labels to replace with wrong ones, to study methods against wrong "
        "labels; validation and test labels stay as they are",
    )
    label_noise_kind: Literal["symmetric", "pairs"] = Field(
        default="symmetric",
        description="`symmetric`: any other class at random; `pairs`: the next class, and the first for the last",
    )
    split_seed: int = Field(
        default=0, ge=0, le=MAX_SEED, description="seed of the split, the subsets, `label_noise` and `noise`"
    )
    num_classes: int | None = Field(
        default=None,
        ge=2,
        le=MAX_CLASSES,
        description="number of classes of `noise`, 10 by default; other sources define their classes",
    )

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getrgb(value)
        except ValueError:
            raise ValueError(
                f"must be a colour as CSS names it, such as `white` or `#808080`, but got {value!r}."
            ) from None
        return value

    @model_validator(mode="after")
    def _training_images_remain(self) -> "DataConfig":
        if self.validation + self.test >= 0.95:
            raise ValueError(
                "`validation` and `test` together must stay below 0.95, "
                f"but got {self.validation} + {self.test}. Lower one of them."
            )
        return self

    @model_validator(mode="after")
    def _labels_can_be_replaced(self) -> "DataConfig":
        if self.label_noise > 0 and self.source == NOISE:
            raise ValueError(
                f"`label_noise` needs a source with real labels, but the labels of `source: {NOISE}` are random "
                "already. Remove it."
            )
        if self.label_noise == 0 and self.label_noise_kind != "symmetric":
            raise ValueError(
                f"`label_noise_kind: {self.label_noise_kind}` needs a `label_noise` above 0, but got 0. Set it, or "
                "remove the kind."
            )
        return self

    @model_validator(mode="after")
    def _only_noise_has_a_number_of_classes(self) -> "DataConfig":
        if self.num_classes is not None and self.source != NOISE:
            raise ValueError(
                f"`num_classes` needs `source: {NOISE}`, but the source is {self.source!r}, which defines its own "
                "classes. Remove `num_classes`."
            )
        return self


class InitialWeights(_Plain):
    """Weights that a training starts from, or those of its teacher, written as what the user names.

    Examples are `photos@champion`, a folder or a file.
    """

    source: str = Field(min_length=1, description="`STUDY@champion`, a model folder, a .safetensors or a .pth file")
    sha256: str | None = Field(default=None, description="sha256 of the file; `null` before it is read")
    file: Path | None = Field(
        default=None, description="copy of the weights for this training (`trainers.weights.prepared`)"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, raw: Any) -> Any:
        return {"source": raw} if isinstance(raw, str) else raw


class Configuration(_Plain):
    """Everything needed to train a model again. `vitsearch best` prints it and `vitsearch train` reads it."""

    data: DataConfig = Field(description="source and split of the images")
    topology: str = Field(description="`space:text`, such as as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,16")
    recipe: Recipe = Field(description="hyperparameters and methods of the training")
    epochs: int = Field(ge=1, le=MAX_COUNT, description="budget in passes over the training set")
    seed: int = Field(ge=0, le=MAX_SEED, description="seed of weights, example order, augmentation and drop path")
    stopping: PluginChoice | None = Field(
        default=None, description="early-stopping criterion; null disables early stopping"
    )
    averaging: PluginChoice = Field(
        default=PluginChoice(name="last"), description="method that combines the checkpoints into one model"
    )
    weights: InitialWeights | None = Field(
        default=None,
        description="weights to start from: `STUDY@champion`, a model folder, a .safetensors or a .pth file; null "
        "starts from random weights",
    )
    stop_at: int | None = Field(
        default=None,
        ge=1,
        description="epoch after which the training ends although its schedule has `epochs`; null trains all epochs",
    )
    teacher: InitialWeights | None = Field(
        default=None,
        description="trained model whose predictions a loss such as `soft-distillation` learns from: "
        "`STUDY@champion` or a model folder",
    )
    metric: PluginChoice = Field(
        default=ACCURACY_CHOICE, description="validation metric by which checkpoints and their averages are compared"
    )
    train_on: Literal["train", "train+validation"] = Field(
        default="train",
        description="parts whose images the training uses; with `train+validation`, no validation figure is left, and "
        "neither early stopping nor a choice between checkpoints is possible",
    )

    @property
    def last_epoch(self) -> int:
        """The epoch after which the training ends, unless it is stopped earlier."""
        return self.epochs if self.stop_at is None else min(self.stop_at, self.epochs)

    @model_validator(mode="after")
    def _stops_within_the_training(self) -> "Configuration":
        if self.stop_at is not None and self.stop_at > self.epochs:
            raise ValueError(
                f"`stop_at` must be at most `epochs` ({self.epochs}), but is {self.stop_at}. Lower it or remove it."
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_chosen_without_validation(self) -> "Configuration":
        if self.train_on != "train" and self.stopping is not None:
            raise ValueError(
                "`stopping` must be null with `train_on: train+validation`, because no validation image is left, but "
                f"is {self.stopping.name}. Remove it."
            )
        return self


class Resources(_Plain):
    """Resource limits of the trials of a study. Unset values are determined from the devices."""

    cpus_per_trial: float | None = Field(default=None, gt=0, description="CPU cores per trial")
    gpus_per_trial: float | None = Field(
        default=None,
        ge=0,
        description="GPUs per trial: a share below 1, or a whole number; 0 uses no GPU. A training computes on all its "
        "GPUs together",
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="maximum number of concurrent trials; a pack counts as one"
    )
    trials_per_pack: int = Field(
        default=1,
        ge=1,
        strict=True,
        description="maximum number of trainings of one topology that one process computes together, with stacked "
        "weights; 1 disables packs",
    )
    memory_margin: float = Field(
        default=0.25,
        ge=0,
        description="memory to keep free per trial, as a fraction of the memory measured in a dry run",
    )
    precision: Precision = Field(
        default="auto",
        description="number format of the products in forward and backward passes; `auto` is bfloat16 on CUDA GPUs "
        "that have it, and float32 elsewhere. Weights, losses and optimizers always use float32",
    )
    compile: bool = Field(
        default=False,
        description="compile models with `torch.compile`, which takes a minute per topology and pays for long "
        "trainings; packs are not compiled. Without a C++ compiler, a warning is logged and training is not compiled",
    )

    @model_validator(mode="after")
    def _more_than_one_gpu_is_a_whole_number(self) -> "Resources":
        share = self.gpus_per_trial
        if share is not None and share > 1 and share != int(share):
            raise ValueError(
                f"`gpus_per_trial` must be a share below 1 or a whole number, but got {share}. "
                f"Use {int(share)} or {int(share) + 1}."
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
    """Number of classes of the networks; `None` uses that of the data."""
    need_all: bool = True
    """Whether the task fails if one proxy fails."""
    verify: bool = False
    """Whether proxies of other packages are computed twice; one that gives another score then fails."""


class Fence(_Plain):
    """Identifies the attempt that may write the files of a training; see `trainers.training.fencing`."""

    file: Path
    """File that contains the token of the newest attempt."""
    token: int = Field(ge=1)
    """Token of this attempt. Later attempts have higher tokens."""


class TrainTask(_Plain):
    """Train one configuration, starting from its newest intact checkpoint in `folder` if there is one."""

    kind: Literal["train"] = "train"
    configuration: Configuration
    folder: Path
    """Folder of the trial's checkpoints."""
    keep_checkpoints: int = Field(default=1, ge=1, description="number of newest epochs whose weights are kept")
    earlier_epochs: tuple[int, ...] = ()
    """Numbers of epochs for which it was planned before. Its checkpoints of then are continued if the recipe allows it,
    otherwise removed."""
    alone: bool = False
    """Whether it must not be packed with others, for instance because an earlier attempt crashed its process."""
    signals: tuple[Signal, ...] = ()
    """Signals to measure every epoch, in addition to those that plug-ins of the configuration read."""
    best_score: float | None = None
    """The best score of the study's metric with which an earlier trial ended, for stopping criteria; `None` if there is
    none."""
    earlier_scores: tuple[tuple[float, ...], ...] = ()
    """Scores of earlier trials after each of their epochs, for stopping criteria that read them."""
    fence: Fence | None = None
    """Fence of this attempt; `None` if there is only ever one attempt."""
    precision: Precision = "auto"
    compile: bool = False
    """Whether to use `torch.compile`, unless the training is part of a pack."""


class PackedTrainTask(_Plain):
    """Train several configurations together. Each is reported, stopped and saved independently."""

    kind: Literal["packed-train"] = "packed-train"
    tasks: tuple[TrainTask, ...] = Field(min_length=1)
    """Tasks of which each pair passes `trainers.training.packing.can_be_packed`."""


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
    stop_at: int | None = None
    """Epoch at which the training is taken to have ended; `None` for its last one."""
    trials: tuple[Path, ...] = ()
    """The newest checkpoint of each trial of the same topology, the best trial last; for methods that mix trials."""
    precision: Precision = "auto"


Task = Annotated[ScoreTask | TrainTask | ReplayTask | AverageTask, Field(discriminator="kind")]


class EpochReport(_Plain):
    """Report of a training after one epoch."""

    epoch: int = Field(ge=1)
    train_loss: float
    val_loss: float
    val_accuracy: float = Field(description="fraction between 0 and 1")
    metrics: dict[str, float] = Field(
        default_factory=dict,
        description="further validation metrics, such as `val_macro_f1`; empty in reports of version 0.1.0",
    )
    learning_rate: float
    num_images: int = Field(description="number of training images visited in this epoch")
    training_macs: float = Field(
        default=0.0,
        ge=0,
        description="multiply-accumulates of this epoch's training, in closed form: 3 forward passes (the backward "
        "pass counts as 2) per image visited, and 1 per image whose difficulty was measured; in the first epoch also "
        "those of trainings that measured a difficulty before, even if its values were known; 0 if unknown",
    )
    wall_time_s: float
    signals: dict[str, float] = Field(default_factory=dict, description="measured signals, by name")

    def as_result(self) -> dict[str, Any]:
        """The report as plain data, with each metric also at the top, for a scheduler."""
        return {**self.model_dump(mode="json"), **self.metrics}

    @property
    def point(self) -> CurvePoint:
        """The part of the report that stopping criteria see, without the score."""
        return CurvePoint(
            self.epoch, self.train_loss, self.val_loss, self.val_accuracy, self.signals, metrics=self.metrics
        )

    def value(self, metric: DecidingMetric) -> float:
        """The validation value of a metric.

        Raises:
            KeyError: The epoch was recorded without this metric.
        """
        known = {"val_loss": self.val_loss, "val_accuracy": self.val_accuracy, **self.metrics}
        return known[metric.key]

    def point_by(self, metric: DecidingMetric) -> CurvePoint:
        """The part of the report that stopping criteria see, with its score by a metric."""
        return self.point._replace(score=metric.score(self.value(metric)))


class CheckpointRecord(_Plain):
    """One saved checkpoint."""

    epoch: int
    path: Path
    """Folder of the checkpoint."""
    sha256: str
    """sha256 of the weights file."""
    num_bytes: int


class TaskOutcome(_Plain):
    """Result of a task."""

    state: Literal["complete", "stopped", "failed", "interrupted"]
    """`stopped`: ended by its stopping criterion; `interrupted`: ended early on request, to be resumed later."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Finite numbers only."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Additional JSON data."""
    reason: str | None = None
    """Human-readable reason why the task stopped or failed."""
    error: Literal["out-of-memory", "not-finite", "exception", "storage", "silent"] | None = None
    """`silent`: the task stopped responding. `storage`: files could not or must not be written; retrying other trials
    would not help, so the state is `interrupted`."""
    checkpoints: tuple[CheckpointRecord, ...] = ()
