"""The built-in study: UnIVAL at two setups, pocket and base."""
