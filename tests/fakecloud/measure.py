"""Prints the targets of the deploy wing against the fake; by hand: `python -m tests.fakecloud.measure`.

The fake adds 50 ms to every call. Time that Google takes (builds, starts, propagation) is on the simulated clock;
what is printed is our own.
"""

from __future__ import annotations

import time

from coldstream.deploy import fix
from tests.deploy.conftest import ME, Shelf, Site, prepare
from tests.fakecloud import Bucket, FakeCloud, World
from tests.fakecloud.iam import roles

LATENCY = 0.05


def project() -> World:
    """One owner, one model's bucket."""
    world = World()
    world.apis |= {"cloudresourcemanager.googleapis.com", "iam.googleapis.com", "policytroubleshooter.googleapis.com"}
    world.add_bucket("models", Bucket("US-CENTRAL1"))
    world.iam.grant(world.project_name, "roles/owner", ME)
    return world


def measure_doctor() -> None:
    """The whole report, with the clients' imports the first time."""
    with FakeCloud(project(), latency=LATENCY) as cloud:
        site = Site(cloud.world, cloud, Shelf())
        prepare(site)
        for label in ("doctor, clients imported on the way", "doctor, again"):
            before, begun, busy = len(site.world.requests), time.monotonic(), time.process_time()
            report = site.job().examine()
            seconds, cpu = time.monotonic() - begun, time.process_time() - busy
            calls = len(site.world.requests) - before
            print(f"{label}: {len(report.checks)} checks, {calls} calls of 50 ms, {seconds:.2f} s ({cpu:.2f} s CPU)")


def measure_redeployment() -> None:
    """A second deployment in which the configuration alone changed."""
    with FakeCloud(project(), latency=LATENCY) as cloud:
        site = Site(cloud.world, cloud, Shelf())
        prepare(site)
        site.deploy()
        site.world.requests.clear()
        begun = time.monotonic()
        site.deploy(concurrency=3)
        seconds = time.monotonic() - begun
        builds = site.asked("builds.create")
        print(f"deploy, configuration changed: {builds} builds, {len(site.world.requests)} calls, {seconds:.2f} s")


def list_grants() -> None:
    """What each account holds after --fix that it did not before."""
    with FakeCloud(project()) as cloud:
        site = Site(cloud.world, cloud, Shelf())
        job = site.job()
        fixed = fix.apply(job.session.google, job.examine, job.examine(), clock=site.world.clock, tell=lambda _: None)
        print(f"after --fix: exit code {fixed.report.exit_code}, {len(fixed.added)} grants")
        for item in fixed.added:
            print(f"  {item.member}: {item.role} on {item.resource}")
            print(f"    {', '.join(sorted(roles()[item.role]))}")


if __name__ == "__main__":
    measure_doctor()
    measure_redeployment()
    list_grants()
