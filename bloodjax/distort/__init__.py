"""What cameras, optics, stains, files and careless hands do to a picture, in NumPy on the host."""
