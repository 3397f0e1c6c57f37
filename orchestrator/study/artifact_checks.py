"""Checks that the artifact root can be used by a study, before anything is written."""

from orchestrator.engines.choice import ExecutionSetup
from orchestrator.engines.interfaces import EngineUnavailableError
from orchestrator.safe_text import without_secrets
from orchestrator.settings import Settings, SettingsError
from orchestrator.spec.engine import PopulationBandits, PopulationBased, scheduler_name
from trainers.storage.addresses import address_of
from trainers.storage.object_store import ObjectStoreError
from trainers.storage.probing import check_store

_NEEDS_FOLDER = (
    "an artifact root in an object store, {address}, does not suit {what}. Set VITSEARCH_ARTIFACT_ROOT to a folder "
    "that all machines share, or {instead}."
)


def check_artifact_root(settings: Settings, setup: ExecutionSetup) -> None:
    """Check that an artifact root in an object store can be reached, and suits the engine. A folder needs no check.

    Raises:
        SettingsError: The store cannot be used.
        EngineUnavailableError: The engine needs a folder.
    """
    address = address_of(settings.artifact_root)
    if address is None:
        return
    if isinstance(setup.scheduler, PopulationBased | PopulationBandits):
        raise EngineUnavailableError(
            _NEEDS_FOLDER.format(
                address=address,
                what=f"scheduler `{scheduler_name(setup.scheduler)}`, whose trials copy each other's files",
                instead="choose another scheduler",
            )
        )
    if setup.engine == "ray" and setup.ray_address is not None:
        raise EngineUnavailableError(
            _NEEDS_FOLDER.format(
                address=address,
                what=f"engine `ray` on the cluster {setup.ray_address}, because Ray Tune keeps files in it",
                instead="use engine `optuna`, which runs its trials on the same cluster",
            )
        )
    try:
        check_store(settings.artifact_root)
    except ObjectStoreError as error:
        raise SettingsError(
            f"VITSEARCH_ARTIFACT_ROOT must be an object store that this machine can write to, but {address} is not: "
            f"{without_secrets(error.strerror or str(error))}. Check the address, and the endpoint and credentials in "
            "the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and others for s3://)."
        ) from error
