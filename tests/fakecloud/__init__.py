"""A fake Google Cloud that enforces IAM and holds every request against Google's published schemas."""

from tests.fakecloud.methods import add_account
from tests.fakecloud.server import FakeCloud
from tests.fakecloud.world import Bucket, CloudError, Container, SimClock, World

__all__ = ["Bucket", "CloudError", "Container", "FakeCloud", "SimClock", "World", "add_account"]
