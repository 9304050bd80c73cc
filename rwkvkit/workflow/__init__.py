"""What a recipe needs done once its data is there: initial weights, then training."""
