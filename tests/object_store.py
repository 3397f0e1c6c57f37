"""An S3-speaking server on the loopback address, with the real client in front of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from moto.server import ThreadedMotoServer

BUCKET = "lab"


class S3Server(NamedTuple):
    """A running server."""

    endpoint: str
    root: str
    """Address for `VITSEARCH_ARTIFACT_ROOT`."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a process reaches the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-user-of-moto",
            "AWS_SECRET_ACCESS_KEY": "test-secret-of-moto",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with an empty bucket; its objects are lost at the end."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    running = S3Server(f"http://{host}:{port}", f"s3://{BUCKET}/vitsearch")
    try:
        boto3.client(
            "s3",
            endpoint_url=running.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        ).create_bucket(Bucket=BUCKET)
        yield running
    finally:
        server.stop()
