"""Notes: reading and writing, alignment with a recording, and synthesis."""
