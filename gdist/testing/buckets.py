"""A bucket on an S3 server of our own (moto), on loopback."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock


@contextmanager
def s3_bucket(name: str = "gdist-test") -> Iterator[str]:
    """The address of an empty bucket; the environment says where its server is, to children as well."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }
        with mock.patch.dict(os.environ, settings):
            connection = http.client.HTTPConnection(host, port)
            connection.request("PUT", f"/{name}")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            connection.close()
            yield f"s3://{name}"
    finally:
        server.stop()
