"""What visitors may fill in."""

from __future__ import annotations

from django import forms

from orders.catalogue import DESTINATIONS, PRODUCTS, Product


class OrderForm(forms.Form):
    """A new order."""

    product = forms.ChoiceField(choices=[(product.slug, product.name) for product in PRODUCTS.values()])
    quantity = forms.IntegerField(min_value=1, max_value=9, initial=1)
    destination = forms.ChoiceField(choices=[(place, place) for place in DESTINATIONS])
    note = forms.CharField(max_length=200, required=False, label="Note to the shop")

    def clean_product(self) -> Product:
        """Return the product instead of its name."""
        return PRODUCTS[self.cleaned_data["product"]]


class NoteForm(forms.Form):
    """A note to an order that was placed before."""

    text = forms.CharField(max_length=200, label="Note to the shop")
