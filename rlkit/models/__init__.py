"""Language models: created or loaded, with their tokenizers, and how to reach into them."""
