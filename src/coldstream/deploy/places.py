"""Regions: their countries, the locations of buckets that cover them, the groups that organisation policies name; pure.

As Google's pages had them on 2026-11-29: https://cloud.google.com/run/docs/locations,
https://cloud.google.com/storage/docs/locations,
https://cloud.google.com/resource-manager/docs/organization-policy/defining-locations. What is not in here is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

COUNTRIES: Mapping[str, str] = MappingProxyType(
    {
        "africa-south1": "za",
        "asia-east1": "tw",
        "asia-east2": "hk",
        "asia-northeast1": "jp",
        "asia-northeast2": "jp",
        "asia-northeast3": "kr",
        "asia-south1": "in",
        "asia-south2": "in",
        "asia-southeast1": "sg",
        "asia-southeast2": "id",
        "australia-southeast1": "au",
        "australia-southeast2": "au",
        "europe-central2": "pl",
        "europe-north1": "fi",
        "europe-north2": "se",
        "europe-southwest1": "es",
        "europe-west1": "be",
        "europe-west2": "gb",
        "europe-west3": "de",
        "europe-west4": "nl",
        "europe-west6": "ch",
        "europe-west8": "it",
        "europe-west9": "fr",
        "europe-west10": "de",
        "europe-west12": "it",
        "me-central1": "qa",
        "me-central2": "sa",
        "me-west1": "il",
        "northamerica-northeast1": "ca",
        "northamerica-northeast2": "ca",
        "northamerica-south1": "mx",
        "southamerica-east1": "br",
        "southamerica-west1": "cl",
        "us-central1": "us",
        "us-east1": "us",
        "us-east4": "us",
        "us-east5": "us",
        "us-south1": "us",
        "us-west1": "us",
        "us-west2": "us",
        "us-west3": "us",
        "us-west4": "us",
    }
)
_UNION = frozenset({"pl", "fi", "se", "es", "be", "de", "nl", "it", "fr"})
_CONTINENTS = frozenset({"africa", "asia", "australia", "europe", "me", "northamerica", "southamerica", "us"})
_DUAL: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "nam4": ("us-central1", "us-east1"),
        "eur4": ("europe-north1", "europe-west4"),
        "eur5": ("europe-west1", "europe-west2"),
        "eur7": ("europe-west2", "europe-west3"),
        "eur8": ("europe-west3", "europe-west6"),
        "asia1": ("asia-northeast1", "asia-northeast2"),
    }
)


def continent(region: str) -> str:
    """The first word of a region's name."""
    return region.partition("-")[0]


def covers(location: str, locations: tuple[str, ...], region: str) -> bool:
    """Whether a bucket's location, or one of the two regions of a configurable dual-region, is or covers a region."""
    place = location.lower()
    if place == region or region in _DUAL.get(place, ()) or region in {item.lower() for item in locations}:
        return True
    if place == "eu":
        return COUNTRIES.get(region) in _UNION
    return place in ("us", "asia") and continent(region) == place


def allowed(value: str, region: str) -> bool | None:
    """Whether a value of gcp.resourceLocations stands for a region; None for a group that is not known here."""
    name = value.removeprefix("is:")
    if not name.startswith("in:"):
        return name == region
    group = name.removeprefix("in:").removesuffix("-locations")
    if group in COUNTRIES:
        return group == region
    if group == "eu":
        return COUNTRIES.get(region) in _UNION
    if group == "canada":
        return COUNTRIES.get(region) == "ca"
    if group == "northamerica":
        return continent(region) in ("us", "northamerica")
    return continent(region) == group if group in _CONTINENTS else None
