"""Paths of checkpoints and champions become relative to their study's folder.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

studies = sa.table("studies", sa.column("id"), sa.column("name"), sa.column("uid"))
stages = sa.table(
    "stages",
    sa.column("id"),
    sa.column("study_id"),
    sa.column("kind"),
    sa.column("state"),
    sa.column("result", sa.JSON),
)
trials = sa.table("trials", sa.column("id"), sa.column("stage_id"))
checkpoints = sa.table("checkpoints", sa.column("trial_id"), sa.column("epoch"), sa.column("path"))


def upgrade() -> None:
    connection = op.get_bind()
    joined = checkpoints.join(trials, trials.c.id == checkpoints.c.trial_id)
    joined = joined.join(stages, stages.c.id == trials.c.stage_id).join(studies, studies.c.id == stages.c.study_id)
    columns = (checkpoints.c.trial_id, checkpoints.c.epoch, checkpoints.c.path, studies.c.name, studies.c.uid)
    for row in connection.execute(sa.select(*columns).select_from(joined)).all():
        this = (checkpoints.c.trial_id == row.trial_id, checkpoints.c.epoch == row.epoch)
        path = below_study(row.path, row.name, row.uid)
        connection.execute(sa.update(checkpoints).where(*this).values(path=path))
    promoted = sa.select(stages.c.id, stages.c.result, studies.c.name, studies.c.uid)
    promoted = promoted.select_from(stages.join(studies, studies.c.id == stages.c.study_id))
    for stage in connection.execute(promoted.where(stages.c.kind == "promote")).all():
        if "folder" in stage.result:
            result = {**stage.result, "folder": below_study(stage.result["folder"], stage.name, stage.uid)}
            connection.execute(sa.update(stages).where(stages.c.id == stage.id).values(result=result))


def downgrade() -> None:
    """Nothing: the rows no longer name the artifact root."""


def below_study(path: str, name: str, uid: str) -> str:
    """The part of a path after the study's folder; a path elsewhere is kept."""
    _, found, rest = path.partition(f"/studies/{name}-{uid}/")
    return rest if found else path
