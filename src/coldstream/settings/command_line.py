"""Values of options that coldstream.toml has as well: held against the same schema."""

from __future__ import annotations

from coldstream.settings.parse import fit
from coldstream.settings.schema import Device, EngineName, Precision, WeightsFrom


def check_precision(text: str) -> Precision:
    """A precision's name as given on the command line.

    Raises:
        SettingsError: there is none of that name.
    """
    precision: Precision = fit(text, Precision, "--precision")
    return precision


def check_device(text: str) -> Device:
    """A device's name as given on the command line.

    Raises:
        SettingsError: there is none of that name.
    """
    device: Device = fit(text, Device, "--device")
    return device


def check_engine(text: str) -> EngineName:
    """An engine's name as given on the command line.

    Raises:
        SettingsError: there is none of that name.
    """
    engine: EngineName = fit(text, EngineName, "--engine")
    return engine


def check_weights(text: str) -> WeightsFrom:
    """Which weights, as given on the command line.

    Raises:
        SettingsError: there is no such choice.
    """
    chosen: WeightsFrom = fit(text, WeightsFrom, "--weights")
    return chosen
