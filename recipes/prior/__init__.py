"""The network that recipe=auto starts from, and the random ensembles that it was trained on."""
