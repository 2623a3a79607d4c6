"""What crash and integration tests share: a model of the truth, a judge, load makers, and ways to break things."""
