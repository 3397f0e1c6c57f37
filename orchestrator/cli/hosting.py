"""`vitsearch serve`: runs the service."""

from orchestrator.cli.console import note
from orchestrator.settings import load_settings
from orchestrator.tracking.names import is_http


def serve_command(host: str, port: int, mlflow_url: str | None, *, runs_studies: bool) -> None:
    """Serve the studies of the home until Ctrl-C."""
    from orchestrator.api.server import run_service

    settings = load_settings()
    if mlflow_url is None and is_http(settings.tracking_uri):
        mlflow_url = settings.tracking_uri
    run_service(
        settings,
        host=host,
        port=port,
        mlflow_url=mlflow_url,
        runs_studies=runs_studies,
        announce=lambda address: note(f"vitsearch is running at {address} (press Ctrl-C to stop it)"),
    )
