"""Every setting of the product in one typed tree, with the origin of each value."""
