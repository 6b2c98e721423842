"""What makes data that ships with Bespoke; not part of the installed package."""
