"""Does the model still answer: questions through the full model, and a verdict that says what it can see."""
