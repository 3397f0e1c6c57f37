"""The command report, which writes the report on a study."""

from pathlib import Path

from orchestrator.cli.console import busy, out, print_json
from orchestrator.cli.remote import client_of
from orchestrator.settings import load_settings
from orchestrator.study.sizes import human_size


def report_command(study: str, server: str | None, *, file: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write the report on a study as one HTML file."""
    from orchestrator.study.report import require_free, save_report, write_page

    target = file or Path(f"{study}-report.html")
    client = client_of(server)
    with busy(f"making the report on {study} ..."):
        if client:
            require_free(target, overwrite=overwrite)
            written = write_page(client.report(study), target, overwrite=overwrite)
        else:
            written = save_report(study, target, load_settings(), overwrite=overwrite)
    num_bytes = written.stat().st_size
    if as_json:
        print_json({"study": study, "file": str(written), "num_bytes": num_bytes})
    else:
        out(f"{target}: {human_size(num_bytes)}; open it in a browser, print it, or send it")
