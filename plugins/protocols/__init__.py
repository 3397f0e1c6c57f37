"""The interface of each kind of plug-in. Any class with the required members is a plug-in; no base class is needed."""

from plugins.protocols.augmentations import Augmentation, JointAugmentation, Mixing
from plugins.protocols.averaging import Averager, Evaluated, EvaluatingAverager, StateDict
from plugins.protocols.cards import PluginCard
from plugins.protocols.curricula import ExampleOrder, Now, OrderContext, Selection, StepMethod
from plugins.protocols.losses import LabelLoss, Loss, LossContext, StackedLabelLoss
from plugins.protocols.metrics import Metric
from plugins.protocols.optimizers import (
    AppliesRates,
    EvaluatedElsewhere,
    NeedsCurvature,
    Optimizer,
    OptimizerState,
    ParameterLayout,
    RatedPart,
    Segment,
    TwoGradients,
)
from plugins.protocols.proxies import (
    Candidate,
    CurveModel,
    PoolProxy,
    Proxy,
    ProxyModel,
    ProxyScore,
    TransformerBlock,
    is_block,
    is_curve_model,
)
from plugins.protocols.rates import ExcludesOptimizers, NetworkDescription, NetworkPart, PartFactors, RateRule
from plugins.protocols.samplers import Enumeration, FinalChoice, Sampler
from plugins.protocols.schedules import EpochSchedule, LearnsFromStage, Schedule
from plugins.protocols.signals import (
    CLASS_SIGNALS,
    CURVE_FIELDS,
    CURVE_METRICS,
    SIGNAL_COSTS,
    NeedsSignals,
    Signal,
    class_key,
    class_values,
    needed_signals,
)
from plugins.protocols.stopping import CurvePoint, Stopper, planned
from plugins.protocols.traits import DeclaresLength, DeclaresPacking, can_pack, is_independent_of_length

__all__ = [
    "CLASS_SIGNALS",
    "CURVE_FIELDS",
    "CURVE_METRICS",
    "SIGNAL_COSTS",
    "AppliesRates",
    "Augmentation",
    "Averager",
    "Candidate",
    "CurveModel",
    "CurvePoint",
    "DeclaresLength",
    "DeclaresPacking",
    "Enumeration",
    "EpochSchedule",
    "Evaluated",
    "EvaluatedElsewhere",
    "EvaluatingAverager",
    "ExampleOrder",
    "ExcludesOptimizers",
    "FinalChoice",
    "JointAugmentation",
    "LabelLoss",
    "LearnsFromStage",
    "Loss",
    "LossContext",
    "Metric",
    "Mixing",
    "NeedsCurvature",
    "NeedsSignals",
    "NetworkDescription",
    "NetworkPart",
    "Now",
    "Optimizer",
    "OptimizerState",
    "OrderContext",
    "ParameterLayout",
    "PartFactors",
    "PluginCard",
    "PoolProxy",
    "Proxy",
    "ProxyModel",
    "ProxyScore",
    "RateRule",
    "RatedPart",
    "Sampler",
    "Schedule",
    "Segment",
    "Selection",
    "Signal",
    "StackedLabelLoss",
    "StateDict",
    "StepMethod",
    "Stopper",
    "TransformerBlock",
    "TwoGradients",
    "can_pack",
    "class_key",
    "class_values",
    "is_block",
    "is_curve_model",
    "is_independent_of_length",
    "needed_signals",
    "planned",
]
