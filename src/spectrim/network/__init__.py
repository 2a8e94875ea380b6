"""The only code that looks into or changes modules."""
