"""The stand-ins in data/standins, for the two songs of the paper that may not be shipped."""
