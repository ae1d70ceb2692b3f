"""Recipes for any network, and for ConvNeXt on a GPU."""
