"""Central activation scheduler: membership, cohort epochs, replica layout."""
