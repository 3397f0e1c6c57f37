"""The public Python API of vitsearch: run studies, read their results, load models, write plug-ins.

Names are imported when they are first used, so that `import vitsearch` is quick and imports neither torch nor MLflow.
See docs/python.md.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from vitsearch._shadowing import check_packages

if TYPE_CHECKING:
    from orchestrator.client import Client, RequestRefusedError, ServerUnavailableError
    from orchestrator.engines.interfaces import EngineUnavailableError
    from orchestrator.settings import SettingsError
    from orchestrator.spec.study_file import StudySpec
    from orchestrator.spec.truth_error import TruthError
    from orchestrator.spec.warm_start import WarmStartError
    from orchestrator.stages.averaging import AveragingResult
    from orchestrator.stages.grow import GrowResult
    from orchestrator.stages.kind import StageResult
    from orchestrator.stages.progress import Progress
    from orchestrator.stages.promote import PromoteResult
    from orchestrator.stages.screen import ScreenResult
    from orchestrator.stages.stopping import StoppingResult
    from orchestrator.stages.train_result import TrainResult
    from orchestrator.stages.verdict_results import CorrelateResult
    from orchestrator.store.errors import DatabaseUnavailableError
    from orchestrator.study.access import NoChampionError, UnknownStudyError
    from orchestrator.study.driver import DataChangedError
    from orchestrator.study.growth import SpecChangedError
    from orchestrator.study.lock import StudyBusyError
    from plugins.protocols import (
        AppliesRates,
        AttendsToImage,
        AttentionMixing,
        Augmentation,
        Averager,
        Candidate,
        CurveModel,
        CurvePoint,
        DeclaresImageSizes,
        DeclaresLength,
        DeclaresPacking,
        Enumeration,
        EpochSchedule,
        Evaluated,
        EvaluatedElsewhere,
        EvaluatingAverager,
        ExampleOrder,
        ExampleWeights,
        ExcludesOptimizers,
        FinalChoice,
        GuidedLoss,
        JointAugmentation,
        LabelLoss,
        LearnsFromStage,
        Loss,
        LossContext,
        LossInput,
        Metric,
        Mixing,
        Mixture,
        NeedsCurvature,
        NeedsPriorDifficulty,
        NeedsSignals,
        NetworkDescription,
        NetworkPart,
        Now,
        Optimizer,
        OptimizerState,
        OrderContext,
        ParameterLayout,
        PartFactors,
        PluginCard,
        PoolProxy,
        PriorDifficulty,
        Proxy,
        ProxyModel,
        ProxyScore,
        RatedPart,
        RateRule,
        ReadsEarlierCurves,
        ReadsInputs,
        Sampler,
        Schedule,
        Segment,
        Selection,
        Signal,
        StackedLabelLoss,
        StateDict,
        StatefulLoss,
        StepMethod,
        Stopper,
        TrainingProxy,
        TrainsSmaller,
        TransformerBlock,
        TwoGradients,
        WaitsForEpochs,
    )
    from plugins.registry import DuplicatePluginError, UnknownPluginError
    from search_spaces.base import Costs, Growable, ImageTask, SearchSpace, Topology
    from search_spaces.dimensions import AtLeast, Choice, Condition, Dimension, Integer, Point, Real
    from search_spaces.step_settings import StepSettings
    from trainers.champion import ModelError, Prediction, Predictor
    from trainers.config import Configuration
    from trainers.data.listing import DataError
    from trainers.results.model_report import ModelReport
    from trainers.weights.errors import WeightsError
    from trainers.yaml_source import SpecError
    from vitsearch._models import load_model
    from vitsearch._studies import Champion, StudyRun, Trial, load_run, run_study
    from vitsearch._study_files import load_study

    __version__: str

__all__ = [
    "AppliesRates",
    "AtLeast",
    "AttendsToImage",
    "AttentionMixing",
    "Augmentation",
    "Averager",
    "AveragingResult",
    "Candidate",
    "Champion",
    "Choice",
    "Client",
    "Condition",
    "Configuration",
    "CorrelateResult",
    "Costs",
    "CurveModel",
    "CurvePoint",
    "DataChangedError",
    "DataError",
    "DatabaseUnavailableError",
    "DeclaresImageSizes",
    "DeclaresLength",
    "DeclaresPacking",
    "Dimension",
    "DuplicatePluginError",
    "EngineUnavailableError",
    "Enumeration",
    "EpochSchedule",
    "Evaluated",
    "EvaluatedElsewhere",
    "EvaluatingAverager",
    "ExampleOrder",
    "ExampleWeights",
    "ExcludesOptimizers",
    "FinalChoice",
    "GrowResult",
    "Growable",
    "GuidedLoss",
    "ImageTask",
    "Integer",
    "JointAugmentation",
    "LabelLoss",
    "LearnsFromStage",
    "Loss",
    "LossContext",
    "LossInput",
    "Metric",
    "Mixing",
    "Mixture",
    "ModelError",
    "ModelReport",
    "NeedsCurvature",
    "NeedsPriorDifficulty",
    "NeedsSignals",
    "NetworkDescription",
    "NetworkPart",
    "NoChampionError",
    "Now",
    "Optimizer",
    "OptimizerState",
    "OrderContext",
    "ParameterLayout",
    "PartFactors",
    "PluginCard",
    "Point",
    "PoolProxy",
    "Prediction",
    "Predictor",
    "PriorDifficulty",
    "Progress",
    "PromoteResult",
    "Proxy",
    "ProxyModel",
    "ProxyScore",
    "RateRule",
    "RatedPart",
    "ReadsEarlierCurves",
    "ReadsInputs",
    "Real",
    "RequestRefusedError",
    "Sampler",
    "Schedule",
    "ScreenResult",
    "SearchSpace",
    "Segment",
    "Selection",
    "ServerUnavailableError",
    "SettingsError",
    "Signal",
    "SpecChangedError",
    "SpecError",
    "StackedLabelLoss",
    "StageResult",
    "StateDict",
    "StatefulLoss",
    "StepMethod",
    "StepSettings",
    "Stopper",
    "StoppingResult",
    "StudyBusyError",
    "StudyRun",
    "StudySpec",
    "Topology",
    "TrainResult",
    "TrainingProxy",
    "TrainsSmaller",
    "TransformerBlock",
    "Trial",
    "TruthError",
    "TwoGradients",
    "UnknownPluginError",
    "UnknownStudyError",
    "WaitsForEpochs",
    "WarmStartError",
    "WeightsError",
    "__version__",
    "load_model",
    "load_run",
    "load_study",
    "run_study",
]

_HOMES = {
    "orchestrator.client": "Client RequestRefusedError ServerUnavailableError",
    "orchestrator.engines.interfaces": "EngineUnavailableError",
    "orchestrator.settings": "SettingsError",
    "orchestrator.spec.study_file": "StudySpec",
    "orchestrator.spec.truth_error": "TruthError",
    "orchestrator.spec.warm_start": "WarmStartError",
    "trainers.yaml_source": "SpecError",
    "orchestrator.stages.averaging": "AveragingResult",
    "orchestrator.stages.grow": "GrowResult",
    "orchestrator.stages.kind": "StageResult",
    "orchestrator.stages.progress": "Progress",
    "orchestrator.stages.promote": "PromoteResult",
    "orchestrator.stages.screen": "ScreenResult",
    "orchestrator.stages.stopping": "StoppingResult",
    "orchestrator.stages.train_result": "TrainResult",
    "orchestrator.stages.verdict_results": "CorrelateResult",
    "orchestrator.store.errors": "DatabaseUnavailableError",
    "orchestrator.study.access": "NoChampionError UnknownStudyError",
    "orchestrator.study.driver": "DataChangedError",
    "orchestrator.study.growth": "SpecChangedError",
    "orchestrator.study.lock": "StudyBusyError",
    "plugins.protocols": (
        "AppliesRates AttendsToImage AttentionMixing Augmentation Averager Candidate CurveModel CurvePoint "
        "DeclaresImageSizes DeclaresLength DeclaresPacking Enumeration EpochSchedule Evaluated EvaluatedElsewhere "
        "EvaluatingAverager ExampleOrder ExampleWeights ExcludesOptimizers FinalChoice GuidedLoss JointAugmentation "
        "LabelLoss LearnsFromStage Loss LossContext LossInput Metric Mixing Mixture NeedsCurvature "
        "NeedsPriorDifficulty NeedsSignals NetworkDescription NetworkPart Now Optimizer OptimizerState OrderContext "
        "ParameterLayout PartFactors PluginCard PoolProxy PriorDifficulty Proxy ProxyModel ProxyScore RateRule "
        "RatedPart ReadsEarlierCurves ReadsInputs Sampler Schedule Segment Selection Signal StackedLabelLoss StateDict "
        "StatefulLoss StepMethod Stopper TrainingProxy TrainsSmaller TransformerBlock TwoGradients WaitsForEpochs"
    ),
    "plugins.registry": "DuplicatePluginError UnknownPluginError",
    "search_spaces.base": "Costs Growable ImageTask SearchSpace Topology",
    "search_spaces.dimensions": "AtLeast Choice Condition Dimension Integer Point Real",
    "search_spaces.step_settings": "StepSettings",
    "trainers.champion": "ModelError Prediction Predictor",
    "trainers.config": "Configuration",
    "trainers.data.listing": "DataError",
    "trainers.results.model_report": "ModelReport",
    "trainers.weights.errors": "WeightsError",
    "vitsearch._models": "load_model",
    "vitsearch._studies": "Champion StudyRun Trial load_run run_study",
    "vitsearch._study_files": "load_study",
}
"""Where the names of `__all__` are defined. The imports above tell type checkers the same."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

check_packages()

if not TYPE_CHECKING:  # for a type checker, a module with this function has every attribute

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            value = version("vitsearch")
        elif name in _HOME_OF:
            value = getattr(import_module(_HOME_OF[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)
