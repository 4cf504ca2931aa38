"""Recipes: typed, torch-free, all errors at once."""

from alignloop.config.load import find_recipe, load_recipe
from alignloop.config.recipe import Recipe

__all__ = ["Recipe", "find_recipe", "load_recipe"]
