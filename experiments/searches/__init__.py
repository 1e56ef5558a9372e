"""Search of merging coefficients: `driver.search` asks a method for points, evaluates what is new, tells it the scores.

`methods` propose, `space` says what a point is and what it is worth, `cells` binds a search to the grid.
"""
