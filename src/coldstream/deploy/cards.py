"""The cards that Cloud Run has: size, quota, regions, and the driver that decides which images run; pure.

As copies of Google's pages had it that were read on 2026-11-30: one card an instance, for services and worker pools
(https://cloud.google.com/run/docs/configuring/services/gpu). They differ on whether an L4 in us-central1 is by
invitation: here it is; what Cloud Quotas lists goes before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from coldstream.errors import DeployError, SettingsError

READ_ON = "2026-11-30"
Cuda = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of card. Memory in bytes, `bandwidth` in bytes a second (NVIDIA's figures).

    `quota_unit` is how much of a quota one card takes: Cloud Quotas counts RTX PRO 6000 in thousandths. `cuda` is the
    newest version that the driver knows, `oldest_cuda` the first that has code for the card.
    """

    name: str
    title: str
    accelerator: str
    quota_stem: str
    quota_unit: int
    least_cpu: int
    least_memory_gib: int
    device_bytes: int
    bandwidth: float
    driver: str
    cuda: Cuda
    oldest_cuda: Cuda
    regions: tuple[str, ...]
    by_invitation: tuple[str, ...] = ()

    def quota(self, *, redundant: bool) -> str:
        """The id of its quota, with or without zonal redundancy."""
        return f"{self.quota_stem}Alloc{'' if redundant else 'NoZonalRedundancy'}PerProjectRegion"


L4 = Card(
    name="l4",
    title="NVIDIA L4",
    accelerator="nvidia-l4",
    quota_stem="NvidiaL4Gpu",
    quota_unit=1,
    least_cpu=4,
    least_memory_gib=16,
    device_bytes=22 * 1024**3,
    bandwidth=300e9,
    driver="535.216.03",
    cuda=(12, 2),
    oldest_cuda=(11, 8),
    regions=("us-east4", "europe-west1", "europe-west4", "asia-southeast1"),
    by_invitation=("us-central1", "asia-south1"),
)
RTX_PRO_6000 = Card(
    name="rtx-pro-6000",
    title="NVIDIA RTX PRO 6000",
    accelerator="nvidia-rtx-pro-6000",
    quota_stem="NvidiaRtxPro6000Gpu",
    quota_unit=1000,
    least_cpu=20,
    least_memory_gib=80,
    device_bytes=94 * 1024**3,
    bandwidth=1597e9,
    driver="580",
    cuda=(13, 0),
    oldest_cuda=(12, 8),
    regions=("us-central1", "europe-west4", "asia-southeast1"),
    by_invitation=("asia-south2",),
)
CARDS: Mapping[str, Card] = MappingProxyType({card.name: card for card in (L4, RTX_PRO_6000)})

# CUDA builds on https://download.pytorch.org/whl, by torch's version.
_WHEELS: Mapping[tuple[int, int], tuple[str, ...]] = MappingProxyType(
    {
        (2, 9): ("cu126", "cu128", "cu130"),
        (2, 10): ("cu126", "cu128", "cu130"),
        (2, 13): ("cu126", "cu129", "cu130", "cu132"),
    }
)


def card(name: str) -> Card:
    """The card of a name.

    Raises:
        SettingsError: there is none.
    """
    if name not in CARDS:
        raise SettingsError(f"deploy.card = {name!r}: there are {', '.join(CARDS)}")
    return CARDS[name]


def runs(chosen: Card, cuda: Cuda) -> bool:
    """Whether the card's driver runs an image of a CUDA version.

    A driver runs every minor version of its own major one, and older major ones
    (https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
    """
    return chosen.oldest_cuda <= cuda and cuda[0] <= chosen.cuda[0]


def read_cuda(text: str) -> Cuda:
    """A version as a pair, from "12.6".

    Raises:
        SettingsError: it is none.
    """
    found = re.fullmatch(r"(\d{1,2})\.(\d{1,2})", text)
    if found is None:
        raise SettingsError(f'deploy.image_cuda = {text!r}: write it as "12.6"')
    return int(found[1]), int(found[2])


def check_image(chosen: Card, cuda: Cuda) -> None:
    """Refuse an image that the card's driver does not run.

    Raises:
        DeployError: the message names both versions.
    """
    if not runs(chosen, cuda):
        raise DeployError(
            f"the image needs CUDA {_told(cuda)}, and {chosen.title} on Cloud Run has driver {chosen.driver} with CUDA "
            f"{_told(chosen.cuda)} (as of {READ_ON}); use an image for CUDA {chosen.cuda[0]}.x, or another --card"
        )


def torch_for(chosen: Card, installed: str) -> tuple[str, str]:
    """A version of torch and the index that has it in a build which the card's driver runs.

    The installed one, where such a build is known here; else the newest that is, so that what is installed on the
    machine that deploys never bars a card.

    Raises:
        DeployError: no build is known for the card at all.
    """
    major, minor = (int(part) for part in installed.split(".")[:2])
    known = sorted((release for release in _WHEELS if _builds(chosen, release)), reverse=True)
    if not known:
        raise DeployError(
            f"no CUDA build of torch for {chosen.title} (driver {chosen.driver}, CUDA {_told(chosen.cuda)}) is known "
            f"here (as of {READ_ON}); name an image of your own with deploy.image"
        )
    release = (major, minor) if (major, minor) in known else known[0]
    # The nearest to the driver's own version leaves least to compatibility between minor versions.
    best = min(_builds(chosen, release), key=lambda build: abs(_cuda_of(build)[1] - chosen.cuda[1]))
    version = installed if release == (major, minor) else f"{release[0]}.{release[1]}.0"
    return version, f"https://download.pytorch.org/whl/{best}"


def _builds(chosen: Card, release: tuple[int, int]) -> list[str]:
    return [build for build in _WHEELS.get(release, ()) if runs(chosen, _cuda_of(build))]


VLLM_RELEASE = "0.32.0"
_VLLM_IMAGE = "docker.io/vllm/vllm-openai"
_VLLM_IMAGES: Mapping[Cuda, str] = MappingProxyType({(13, 0): "", (12, 9): "-cu129"})
"""CUDA of vLLM's images, and how their tags end: since 0.20 the plain one is for CUDA 13 (vllm issue 42738), and
`-cu129` is built beside it. Read on 2026-11-30; none was pulled here."""


def vllm_base(chosen: Card) -> str:
    """vLLM's image whose CUDA the card's driver runs; the newest such one.

    Raises:
        DeployError: none is known.
    """
    best = max((cuda for cuda in _VLLM_IMAGES if runs(chosen, cuda)), default=None)
    if best is None:
        raise DeployError(
            f"no image of vLLM {VLLM_RELEASE} for {chosen.title} (driver {chosen.driver}) is known here (as of "
            f"{READ_ON}); name an image of your own with deploy.image, or deploy with --engine native"
        )
    return f"{_VLLM_IMAGE}:v{VLLM_RELEASE}{_VLLM_IMAGES[best]}"


def _cuda_of(build: str) -> Cuda:
    return int(build[2:-1]), int(build[-1])


def _told(cuda: Cuda) -> str:
    return f"{cuda[0]}.{cuda[1]}"
