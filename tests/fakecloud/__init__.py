"""A fake Google Cloud that enforces IAM and holds every request against Google's published schemas."""

import os

# Before grpc is imported: its C core writes to stderr whenever a test closes a connection.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tests.fakecloud.methods import add_account
from tests.fakecloud.server import FakeCloud
from tests.fakecloud.world import Bucket, CloudError, Container, SimClock, World

__all__ = ["Bucket", "CloudError", "Container", "FakeCloud", "SimClock", "World", "add_account"]
