"""Recipes: method, inputs, coefficients and policies; all that remakes a file."""
