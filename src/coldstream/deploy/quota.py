"""What a region lets a project run at once, and the plan that fits in it; pure.

Units as Cloud Quotas answers them: milli-vCPU, bytes, cards. Cloud Run holds a service's max_instances x size against
the limit when a revision is made; while a new revision starts, the old one's instances still run beside its first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coldstream.deploy.sizing import GIB, Size

CPU_QUOTA = "CpuAllocPerProjectRegion"
MEMORY_QUOTA = "MemAllocPerProjectRegion"
DEFAULT_MAX_INSTANCES = 3
# What a project's first service with a card usually grants itself, without zonal redundancy.
FIRST_GRANT = 3


@dataclass(frozen=True, slots=True)
class Demand:
    """What each instance takes from one quota; `limit` is None where it is unknown."""

    quota: str
    label: str
    each: int
    limit: int | None
    unit: str
    scale: float
    first_grant: int = 0

    @property
    def auto_granted(self) -> bool:
        """Whether a limit of 0 is no refusal, since a first deployment usually raises it by itself."""
        return self.limit == 0 and self.first_grant > 0

    @property
    def most(self) -> int | None:
        """The most instances that the limit holds."""
        if self.limit is None:
            return None
        return self.first_grant if self.auto_granted else self.limit // self.each

    def fits(self, instances: int) -> bool | None:
        """Whether the limit holds so many; None when it is unknown."""
        if self.limit is None or self.auto_granted:
            return None
        return instances * self.each <= self.limit

    def says(self, instances: int) -> str:
        """The sum, for people."""
        need = instances * self.each / self.scale
        have = "unknown" if self.limit is None else f"{self.limit / self.scale:g} {self.unit}"
        return f"{instances} instance{'s' * (instances != 1)} need {need:g} {self.unit}; the limit is {have}"


@dataclass(frozen=True, slots=True)
class Fit:
    """How many instances a region's limits hold. `limited_by` names the quota that said so.

    `overlap` is whether one more fits beside them, as while a new revision starts; None when it is unknown.
    """

    instances: int
    limited_by: str | None
    demands: tuple[Demand, ...]

    @property
    def overlap(self) -> bool | None:
        answers = [item.fits(self.instances + 1) for item in self.demands]
        return False if False in answers else None if None in answers else True

    @property
    def crowded(self) -> tuple[Demand, ...]:
        """The demands that do not hold one more."""
        return tuple(item for item in self.demands if item.fits(self.instances + 1) is False)


def names(size: Size, *, zonal_redundancy: bool) -> tuple[str, ...]:
    """The quotas that an instance takes from."""
    return tuple(item.quota for item in demands(size, {}, zonal_redundancy=zonal_redundancy))


def demands(size: Size, limits: Mapping[str, int | None], *, zonal_redundancy: bool) -> tuple[Demand, ...]:
    """What one instance takes from each quota."""
    wanted = [
        Demand(CPU_QUOTA, "CPU", size.cpu * 1000, limits.get(CPU_QUOTA), "vCPU", 1000),
        Demand(MEMORY_QUOTA, "memory", size.memory_gib * GIB, limits.get(MEMORY_QUOTA), "GiB", GIB),
    ]
    if size.card is None:
        return tuple(wanted)
    quota, unit = size.card.quota(redundant=zonal_redundancy), size.card.quota_unit
    label = f"{size.card.title.removeprefix('NVIDIA ')} {'with' if zonal_redundancy else 'without'} zonal redundancy"
    grant = 0 if zonal_redundancy else FIRST_GRANT
    return (*wanted, Demand(quota, label, unit, limits.get(quota), "GPU", unit, first_grant=grant))


def fit(size: Size, limits: Mapping[str, int | None], *, wanted: int | None, least: int, zonal_redundancy: bool) -> Fit:
    """The wanted number of instances, or the most that the limits hold; 0 when not even one fits.

    Without a wish: up to three, and fewer where one more would not fit while a new revision starts; one where a limit
    is not known; never fewer than the `least` that are always there, where the limits hold those. The first deployment
    of one instance never fails for an overlap that it does not have.
    """
    asked = demands(size, limits, zonal_redundancy=zonal_redundancy)
    # A limit that may not be seen is not counted on: Cloud Run refuses a service whose sum is above it.
    unseen = any(item.limit is None for item in asked)
    goal = wanted or max(least, 1 if unseen else DEFAULT_MAX_INSTANCES)
    most = {item.quota: item.most for item in asked if item.most is not None}
    tightest = min(most, key=lambda name: most[name], default=None)
    if tightest is None:
        return Fit(goal, None, asked)
    room = most[tightest] if wanted else max(min(max(1, least), most[tightest]), most[tightest] - 1)
    return Fit(goal, None, asked) if room >= goal else Fit(max(0, room), tightest, asked)
