"""Pickles read and written as data: nothing that they name is imported or called."""
