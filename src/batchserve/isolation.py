"""One partition scored alone, in a process of its own."""
