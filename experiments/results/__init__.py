"""Running a study of any model, and what came out of it."""
