"""Recommendations from the studies that the caller may see."""

from fastapi import APIRouter, Depends, Request

from orchestrator.api.auth import caller_of
from orchestrator.api.routes.studies import studies_for
from orchestrator.api.schemas import (
    DifferenceView,
    LeftOutView,
    RecommendationList,
    RecommendationRequest,
    RecommendationView,
)
from orchestrator.study.recommending import Recommendation, Recommendations, Wanted, recommend_from

router = APIRouter(prefix="/v1", tags=["studies"], dependencies=[Depends(caller_of)])

MAX_STUDIES = 500
"""The newest complete studies are compared."""


@router.post("/recommend", summary="Recommend configurations")
def recommend_configurations(request: Request, wanted: RecommendationRequest) -> RecommendationList:
    """Configurations that finished studies of similar data found, the nearest data first, with what they gave.

    Your studies and shared ones are compared. `vitsearch data --format json` describes your data.
    """
    visible = studies_for(request)
    limits = Wanted(max_params=wanted.max_params, space=wanted.space, budget_s=wanted.budget_s)
    found = Recommendations((), ())
    if visible.has_store:
        found = recommend_from(
            visible.newest(), visible.store, wanted.data, wanted.config, limits, visible.settings, MAX_STUDIES
        )
    return RecommendationList(
        recommendations=[_view(one) for one in found.found],
        left_out=[LeftOutView(study=name, reason=reason) for name, reason in found.left_out],
    )


def _view(one: Recommendation) -> RecommendationView:
    return RecommendationView(
        study=one.study,
        distance=one.distance.total,
        is_near=one.distance.is_near,
        differences=[DifferenceView(amount=each.amount, text=each.text) for each in one.distance.differences],
        configuration=one.configuration,
        trial=one.trial,
        is_champion=one.is_champion,
        result=one.result,
        parameters=one.parameters,
        time_s=one.time_s,
    )
