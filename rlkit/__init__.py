"""rlkit: recipes, plugins and fast online learning for language models and generative recommenders."""

__version__ = "0.1.0"
