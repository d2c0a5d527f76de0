"""What is needed to develop the package and is not part of it."""
