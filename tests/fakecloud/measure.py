"""Prints the targets of the deploy wing against the fake; by hand: `python -m tests.fakecloud.measure`.

The fake adds 50 ms to every call. Time that Google takes (builds, starts, propagation) is on the simulated clock;
what is printed is our own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from coldstream.deploy import fix
from coldstream.deploy.access import Grant, needs, principal_member
from coldstream.deploy.target import Kind, Target
from coldstream.settings import ImageSettings, ServerSettings
from tests.deploy.conftest import ME, Shelf, Site, one_model, prepare
from tests.fakecloud import Bucket, FakeCloud, World

LATENCY = 0.05


def project() -> World:
    """One owner, one model's bucket; Google answers at once, since what is printed is our own time."""
    world = World(hiccup=0)
    world.apis |= {"cloudresourcemanager.googleapis.com", "iam.googleapis.com", "policytroubleshooter.googleapis.com"}
    world.add_bucket("models", Bucket("US-CENTRAL1"))
    world.iam.grant(world.project_name, "roles/owner", ME)
    return world


def measure_doctor() -> None:
    """The whole report, of a service with everything that can be asked about; with the clients' imports first."""
    world = project()
    for name in ("photos", "more-photos"):
        world.add_bucket(name, Bucket("US-CENTRAL1"))
    world.subnets["shop-a"] = {"privateIpGoogleAccess": True}
    chosen = replace(
        one_model(),
        server=ServerSettings(api_keys_secret="model-keys"),
        images=ImageSettings(buckets=("photos", "more-photos")),
    )
    with FakeCloud(world, latency=LATENCY) as cloud:
        site = Site(world, cloud, Shelf())
        prepare(site)
        world.apis |= {"secretmanager.googleapis.com", "compute.googleapis.com"}
        for label in ("doctor, clients imported on the way", "doctor, again"):
            before, begun, busy = len(site.world.requests), time.monotonic(), time.process_time()
            report = site.job(chosen=chosen, network="shop", subnet="shop-a").examine()
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


# May turn on, make and grant, but neither build nor deploy: --fix grants the deployer's own roles to such a caller.
ADMINISTERS = (
    "roles/resourcemanager.projectIamAdmin",
    "roles/serviceusage.serviceUsageAdmin",
    "roles/iam.serviceAccountAdmin",
    "roles/artifactregistry.admin",
    "roles/storage.admin",
)


def list_permissions(caller: str, *roles: str) -> None:
    """For each account: the permissions after --fix, minus those before; from the fake's policies, not from the fix."""
    world = project()
    world.iam.policies[world.project_name] = []
    for role in roles:
        world.iam.grant(world.project_name, role, ME)
    with FakeCloud(world) as cloud:
        site = Site(world, cloud, Shelf())
        job = site.job()
        target = job.target
        accounts = {
            member: _effective(world, member) for member in (ME, *map("serviceAccount:{}".format, target.accounts))
        }
        report = job.examine()
        fixed = fix.apply(job.session.google, job.examine, report, clock=world.clock, tell=lambda _: None)
        added, unasked = _roles(fixed.added), set(fixed.added) - set(report.grants)
        print(f"{caller}: exit code after --fix {fixed.report.exit_code}, {len(fixed.added)} grants, ", end="")
        print(f"{len(unasked)} that no check asked for")
        for member, before in accounts.items():
            _print_gained(target, member, before, _effective(world, member), added)


def _roles(grants: Sequence[Grant]) -> dict[tuple[str, str], str]:
    """The roles by member and resource."""
    found: dict[tuple[str, str], str] = {}
    for item in grants:
        key = (item.member, item.resource.full_name)
        found[key] = f"{found[key]}, {item.role}" if key in found else item.role
    return found


def _effective(world: World, member: str) -> dict[str, set[str]]:
    """What a member may do on each resource that has a policy, with what its project passes on."""
    held = world.iam.permissions_of(member)
    above = held.get(world.project_name, set())
    places = {*held, *world.iam.policies, world.project_name}
    return {place: held.get(place, set()) | above for place in places}


def _print_gained(
    target: Target,
    member: str,
    before: dict[str, set[str]],
    after: dict[str, set[str]],
    added: dict[tuple[str, str], str],
) -> None:
    asked: dict[str, set[str]] = {}
    for need, resource in needs(target):
        if principal_member(need.principal, target, ME) == member:
            asked.setdefault(resource.full_name, set()).add(need.permission)
            if resource.kind is Kind.SERVICE:  # asked of the project as long as there is no service
                asked.setdefault(target.resource(Kind.PROJECT).full_name, set()).add(need.permission)
    wide = next(place for place in after if place.startswith("//cloudresourcemanager."))
    # What was made meanwhile inherited from the project before it had a policy.
    gained = {place: held - before.get(place, before[wide]) for place, held in after.items()}
    gained = {place: more if place == wide else more - gained[wide] for place, more in gained.items()}
    # A bucket is born with a policy for the project's owners; the fix did not write it.
    born = [place for place, more in gained.items() if more and (member, place) not in added]
    print(f"  {member}: {sum(len(more) for place, more in gained.items() if place not in born)} permissions granted")
    for place, more in sorted(gained.items()):
        if place in born:
            print(f"    {place}\n      born with: {', '.join(sorted(more))}")
        elif more:
            checked = more & asked.get(place, set())
            print(f"    {added[member, place]} on {place}\n      asked for: {', '.join(sorted(checked))}")
            print(f"      come with the role: {', '.join(sorted(more - checked)) or 'none'}")


if __name__ == "__main__":
    measure_doctor()
    measure_redeployment()
    list_permissions("an owner", "roles/owner")
    list_permissions("who may grant, and nothing else", *ADMINISTERS)
