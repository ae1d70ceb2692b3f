"""The recipes: config files that `--config=NAME` finds. `bloodjax configs` lists them."""
