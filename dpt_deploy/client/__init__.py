"""A client of a Triton server that serves a bundle: gRPC, HTTP, and shared memory on one machine.

    from dpt_deploy.client import Client

    with Client("localhost:8001") as client:
        prediction = client("photo.jpg")   # a Prediction, as the runtime gives

Needs the extra `client`; importing this package loads nothing of it.
"""

from .client import Client
from .served_model import ServedModel

__all__ = ["Client", "ServedModel"]
