"""Drawn product pictures: what the demo's seeing model was trained on, and the sample photos that it is shown.

Eight things in ten colours before six plain backgrounds; size, place, slant, shade and noise by chance. Ours, so that
no photographer's licence is needed. Pillow only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLORS: Mapping[str, Color] = {
    "red": (205, 35, 40),
    "orange": (240, 130, 25),
    "yellow": (240, 205, 40),
    "green": (45, 150, 65),
    "blue": (40, 85, 200),
    "purple": (125, 55, 165),
    "pink": (245, 130, 175),
    "brown": (120, 75, 40),
    "black": (28, 28, 30),
    "white": (246, 246, 244),
}
BACKGROUNDS: Mapping[str, Color] = {
    "white": (250, 250, 248),
    "grey": (165, 168, 172),
    "beige": (226, 208, 178),
    "sky blue": (165, 210, 240),
    "mint": (178, 228, 196),
    "dark": (58, 60, 68),
}
CATEGORIES = ("home", "garden", "gift")
_CLOSE = frozenset({("white", "white"), ("black", "dark"), ("white", "beige")})


@dataclass(frozen=True, slots=True)
class Product:
    """What a picture shows: a thing, its colour, and what is behind it."""

    thing: str
    color: str
    background: str

    def description(self, category: str) -> str:
        """What the model learns to say of it."""
        article = "An" if self.color[0] in "aeiou" else "A"
        ending = {"home": "made for the home", "garden": "made for the garden", "gift": "a fine gift"}[category]
        return f"{article} {self.color} {self.thing} on a {self.background} background, {ending}."


def _mug(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.ellipse((128, 70, 186, 138), outline=dark, width=12)
    draw.rounded_rectangle((50, 48, 148, 164), 14, fill=fill)
    draw.ellipse((50, 38, 148, 62), fill=dark)


def _bottle(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.rectangle((86, 22, 114, 64), fill=dark)
    draw.polygon([(86, 58), (114, 58), (136, 92), (64, 92)], fill=fill)
    draw.rounded_rectangle((64, 86, 136, 186), 10, fill=fill)


def _lamp(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.polygon([(72, 22), (128, 22), (160, 98), (40, 98)], fill=fill)
    draw.rectangle((94, 98, 106, 166), fill=dark)
    draw.ellipse((62, 158, 138, 180), fill=dark)


def _chair(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.rectangle((52, 20, 68, 184), fill=dark)
    draw.rectangle((52, 20, 84, 110), fill=fill)
    draw.rectangle((52, 104, 152, 126), fill=fill)
    draw.rectangle((136, 120, 152, 184), fill=dark)


def _book(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.rectangle((44, 30, 156, 174), fill=fill)
    draw.rectangle((44, 30, 62, 174), fill=dark)
    for line in (62, 82, 102):
        draw.rectangle((80, line, 138, line + 7), fill=dark)


def _hat(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.pieslice((56, 50, 144, 190), 180, 360, fill=fill)
    draw.rectangle((56, 104, 144, 120), fill=dark)
    draw.ellipse((16, 106, 184, 140), fill=fill)


def _ball(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.ellipse((36, 36, 164, 164), fill=fill)
    draw.arc((36, 36, 164, 164), 20, 110, fill=dark, width=10)
    draw.arc((0, 10, 110, 190), 300, 60, fill=dark, width=6)


def _box(draw: ImageDraw.ImageDraw, fill: Color, dark: Color) -> None:
    draw.polygon([(30, 74), (112, 96), (112, 178), (30, 150)], fill=fill)
    draw.polygon([(112, 96), (172, 66), (172, 142), (112, 178)], fill=dark)
    draw.polygon([(30, 74), (92, 48), (172, 66), (112, 96)], fill=_mixed(fill, (255, 255, 255), 0.25))


THINGS: Mapping[str, Callable[[ImageDraw.ImageDraw, Color, Color], None]] = {
    "mug": _mug,
    "bottle": _bottle,
    "lamp": _lamp,
    "chair": _chair,
    "book": _book,
    "hat": _hat,
    "ball": _ball,
    "box": _box,
}


def choose(chance: random.Random) -> Product:
    """Any product whose colour can be told from its background."""
    while True:
        product = Product(chance.choice(tuple(THINGS)), chance.choice(tuple(COLORS)), chance.choice(tuple(BACKGROUNDS)))
        if (product.color, product.background) not in _CLOSE:
            return product


def picture(product: Product, chance: random.Random, size: tuple[int, int]) -> Image.Image:
    """Draw it, RGB, `size` pixels wide and high."""
    fill = _jittered(COLORS[product.color], chance, 14)
    thing = Image.new("RGBA", (200, 200))
    THINGS[product.thing](ImageDraw.Draw(thing), fill, _mixed(fill, (0, 0, 0), 0.3))
    thing = thing.rotate(chance.uniform(-9, 9), Image.Resampling.BILINEAR)
    if chance.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scene = _scene(_jittered(BACKGROUNDS[product.background], chance, 8), chance, size)
    scale = chance.uniform(0.62, 0.95) * min(size)
    width, height = round(scale * chance.uniform(0.9, 1.1)), round(scale * chance.uniform(0.9, 1.1))
    left = round((size[0] - width) * chance.uniform(0.3, 0.7))
    top = round((size[1] - height) * chance.uniform(0.3, 0.7))
    drawn = thing.resize((width, height), Image.Resampling.BILINEAR)
    scene.paste(drawn, (left, top), drawn)
    return scene


def _scene(color: Color, chance: random.Random, size: tuple[int, int]) -> Image.Image:
    """A wall with light from one side, a table's edge, and a little noise."""
    light = Image.linear_gradient("L").rotate(chance.choice((0, 90, 180, 270))).resize(size)
    bright, dim = _mixed(color, (255, 255, 255), 0.1), _mixed(color, (0, 0, 0), 0.12)
    scene = Image.composite(Image.new("RGB", size, bright), Image.new("RGB", size, dim), light)
    edge = round(size[1] * chance.uniform(0.72, 0.86))
    ImageDraw.Draw(scene).rectangle((0, edge, *size), fill=_mixed(color, (0, 0, 0), 0.16))
    noise = Image.effect_noise(size, chance.uniform(4, 16)).convert("RGB")
    return Image.blend(scene, noise, 0.06)


def _jittered(color: Color, chance: random.Random, spread: int) -> Color:
    red, green, blue = (min(255, max(0, value + chance.randint(-spread, spread))) for value in color)
    return red, green, blue


def _mixed(color: Color, other: Color, part: float) -> Color:
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(color, other, strict=True))
    return red, green, blue
