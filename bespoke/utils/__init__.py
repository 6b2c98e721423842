"""Helpers without audio: errors, files, memory, processor and progress."""
