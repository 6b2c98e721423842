"""Programs that make data shipped with Bespoke. Not part of the installed package."""
