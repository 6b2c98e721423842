"""What all packages use and that knows nothing of audio: errors, files, memory, cores, progress."""
