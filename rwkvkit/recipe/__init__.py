"""Recipes: strict YAML, its schema, and errors that point at the line."""
