"""What a region lets a project run at once, and the plan that fits in it; pure, but for nothing.

Units as Cloud Quotas answers them: milli-vCPU, bytes, GPUs. Cloud Run holds max_instances x size against the limit when
a revision is made; while traffic moves, the old revision's instances still run beside the new one's first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coldstream.deploy.sizing import GIB, Size

CPU_QUOTA = "CpuAllocPerProjectRegion"
MEMORY_QUOTA = "MemAllocPerProjectRegion"
L4_QUOTA = "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion"
L4_REDUNDANT_QUOTA = "NvidiaL4GpuAllocPerProjectRegion"
DEFAULT_MAX_INSTANCES = 3


@dataclass(frozen=True, slots=True)
class Demand:
    """What `instances` need at once, and one more for the rollout's overlap."""

    quota: str
    label: str
    each: int
    limit: int | None
    unit: str
    scale: float

    @property
    def auto_granted(self) -> bool:
        # The first L4 deployment of a project usually grants itself 3 without zonal redundancy: 0 is not a refusal.
        return self.quota == L4_QUOTA and self.limit == 0

    def fits(self, instances: int) -> bool | None:
        """Whether the limit holds `instances` and the overlap; None when nobody knows."""
        if self.limit is None or self.auto_granted:
            return None
        return (instances + 1) * self.each <= self.limit

    def says(self, instances: int) -> str:
        """The sum, for people."""
        need = (instances + 1) * self.each / self.scale
        have = "unknown" if self.limit is None else f"{self.limit / self.scale:g} {self.unit}"
        return f"{instances} instances + 1 while a rollout overlaps need {need:g} {self.unit}; the limit is {have}"


@dataclass(frozen=True, slots=True)
class Fit:
    """How many instances a region's limits hold. `limited_by` names the quota that said so."""

    instances: int
    limited_by: str | None
    demands: tuple[Demand, ...]


def demands(size: Size, limits: Mapping[str, int | None], *, zonal_redundancy: bool) -> tuple[Demand, ...]:
    """What one instance takes from each quota."""
    gpu = L4_REDUNDANT_QUOTA if zonal_redundancy else L4_QUOTA
    label = f"L4 {'with' if zonal_redundancy else 'without'} zonal redundancy"
    wanted = [
        Demand(CPU_QUOTA, "CPU", size.cpu * 1000, limits.get(CPU_QUOTA), "vCPU", 1000),
        Demand(MEMORY_QUOTA, "memory", size.memory_gib * GIB, limits.get(MEMORY_QUOTA), "GiB", GIB),
    ]
    return (*wanted, Demand(gpu, label, 1, limits.get(gpu), "GPU", 1)) if size.gpu else tuple(wanted)


def fit(size: Size, limits: Mapping[str, int | None], *, wanted: int | None, zonal_redundancy: bool) -> Fit:
    """The wanted number of instances, or the most that fit beside a rollout; 0 when not even one does.

    Without a wish: three, or one where a limit is not known.
    """
    asked = demands(size, limits, zonal_redundancy=zonal_redundancy)
    # A limit that nobody may see is not counted on: Cloud Run refuses a service whose sum is above it.
    unseen = any(item.limit is None for item in asked)
    goal = wanted or (1 if unseen else DEFAULT_MAX_INSTANCES)
    # The grant that a first deployment makes is 3; planning for more would count on what nobody promised.
    most = {
        item.quota: (2 if item.auto_granted else item.limit // item.each - 1)
        for item in asked
        if item.limit is not None
    }
    tightest = min(most, key=lambda name: most[name], default=None)
    if tightest is None or most[tightest] >= goal:
        return Fit(goal, None, asked)
    return Fit(max(0, most[tightest]), tightest, asked)
