"""What a study is made of, as data: experts, points between them, cells to evaluate."""
