"""A trained classifier as a page in the browser and as an HTTP endpoint."""
