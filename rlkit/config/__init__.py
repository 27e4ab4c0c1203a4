"""Settings of every built-in component: what a recipe may say, its defaults and its bounds."""
