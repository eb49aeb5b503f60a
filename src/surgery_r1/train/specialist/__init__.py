"""Training a specialist: the rival that classifies and regresses, on the same questions."""
