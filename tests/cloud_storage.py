"""An emulator of Google's Cloud Storage on this machine."""

import contextlib
from http import HTTPStatus

import gcsfs
import pytest
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import objects


@contextlib.contextmanager
def emulated_bucket():
    """The file system of the empty bucket gs://bucket, which subprocesses reach, too."""
    with pytest.MonkeyPatch.context() as patch:
        # Else gcsfs asks, for minutes, what kind of bucket this is.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setattr(objects, "download", _download)
        patch.setattr(emulator, "HANDLERS", (_MOVE, *emulator.HANDLERS))
        server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
        server.start()
        url = f"http://localhost:{server._api._httpd.server_port}"
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        yield gcsfs.GCSFileSystem(endpoint_url=url, token="anon")
        server.stop()


def _download(request, response, storage, *args, **kwargs):
    with contextlib.suppress(objects.NotFound):
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]
    return _emulated_download(request, response, storage, *args, **kwargs)


def _move(request, response, storage, *args, **kwargs):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    if response.status == HTTPStatus.OK:
        storage.delete_file(request.params["bucket_name"], request.params["object_id"])


# What the emulator lacks of the service: generations of what is downloaded, and moves.
_emulated_download = objects.download
_MOVE = (
    r"^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$",
    {"POST": _move},
)
