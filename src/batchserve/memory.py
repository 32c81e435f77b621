"""How much memory the workers may use, and how many rows of a run fit into it."""
