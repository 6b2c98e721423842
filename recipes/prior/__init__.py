"""Training of the network that recipe=auto starts from, on random ensembles."""
