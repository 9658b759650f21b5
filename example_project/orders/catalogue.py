"""What the shop sells, and where it delivers to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Product:
    """A thing with a price in cents; ``hue`` is the colour of its tile, in degrees."""

    slug: str
    name: str
    price_cents: int
    hue: int

    @property
    def price(self) -> str:
        """The price as it is printed."""
        return f"€ {self.price_cents / 100:.2f}"


PRODUCTS = {
    product.slug: product
    for product in (
        Product("teapot", "Teapot", 2900, 18),
        Product("kite", "Kite", 3450, 205),
        Product("lantern", "Lantern", 1990, 42),
        Product("globe", "Globe", 5400, 160),
        Product("chess", "Chess set", 4200, 268),
        Product("compass", "Compass", 2490, 340),
    )
}

#: Orders for the last one are accepted and paid like any other. It is up to shipping to notice.
DESTINATIONS = ("Antwerp", "Bergen", "Cork", "Dresden", "Evora", "The Moon")
