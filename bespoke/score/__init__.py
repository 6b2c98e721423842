"""Notes: from and to files, put in time with a recording, and synthesized."""
